"""What a basis does to training: loss per round on a real model, same clients, steps and K.

    FULLFED_SHARED=... python benchmarks/sketch_loss.py --model stories260k --ratio 100

Each round two clients (tasks of natural-instructions) take five SGD steps; the mean of their
changes is projected to K = d / ratio coordinates, reconstructed, and added times a step that
is the same for every basis. "none" adds the mean change itself.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fullfed.sketch import NormalBasis, SignBasis, allocate

Reconstruct = Callable[[list[Tensor], int, int, list[float]], list[Tensor]]


def batches(shared: Path, tokenizer: Any, length: int = 192) -> list[Tensor]:
    """One tensor of token rows per task."""
    tasks: dict[str, list[int]] = {}
    with gzip.open(shared / "data/natural-instructions-train.jsonl.gz", "rt") as lines:
        for line in lines:
            record = json.loads(line)
            text = f"{record['input']}\n{record['output']}\n"
            tasks.setdefault(record["task"], []).extend(tokenizer(text)["input_ids"])
    return [
        torch.tensor(ids[: len(ids) // length * length]).view(-1, length)[:20]
        for ids in tasks.values()
        if len(ids) >= 20 * length
    ]


def loss(model: PreTrainedModel, rows: Tensor) -> Tensor:
    found: Tensor = model(input_ids=rows, labels=rows).loss
    return found


def train(model: PreTrainedModel, rows: Tensor, rate: float) -> list[Tensor]:
    """The change five steps of four rows make; the model is left as it was."""
    weights = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in weights]
    for step in range(5):
        gradients = torch.autograd.grad(loss(model, rows[4 * step % 16 :][:4]), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(rate * gradient)
    change = [w.detach() - b for w, b in zip(weights, before, strict=True)]
    with torch.no_grad():
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
    return change


def through(basis: SignBasis | NormalBasis, change: list[Tensor]) -> list[Tensor]:
    result = [torch.zeros_like(tensor) for tensor in change]
    basis.reconstruct_(result, basis.project(change))
    return result


def one_block(cls: type[NormalBasis]) -> Reconstruct:
    def act(change: list[Tensor], k: int, number: int, energy: list[float]) -> list[Tensor]:
        blocks = (range(len(change)),)
        return through(cls(seed=1, round=number, blocks=blocks, coordinates=(k,)), change)

    return act


def by_tensor(change: list[Tensor], k: int, number: int, energy: list[float]) -> list[Tensor]:
    """As published: K_l by tensor; shares sqrt(d_l) * norm of the last round's update."""
    blocks = tuple(range(n, n + 1) for n in range(len(change)))
    sizes = [tensor.numel() for tensor in change]
    shares = [d**0.5 * e for d, e in zip(sizes, energy, strict=True)]
    counts = allocate(max(k, len(sizes)), shares, sizes)
    return through(NormalBasis(seed=1, round=number, blocks=blocks, coordinates=counts), change)


METHODS: dict[str, Reconstruct] = {
    "none": lambda change, k, number, energy: change,
    "sign": lambda change, k, number, energy: through(
        SignBasis(seed=1, round=number, coordinates=k), change
    ),
    "normal, one block": one_block(NormalBasis),
    "normal, a block a tensor": by_tensor,
}


def run(folder: Path, tasks: list[Tensor], method: str, options: argparse.Namespace) -> list[float]:
    """Held-out loss before the first round and after each."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = [p for p in model.parameters() if p.requires_grad]
    k = sum(w.numel() for w in weights) // options.ratio
    rng = np.random.default_rng(options.seed)
    held, clients = torch.cat([task[-1:] for task in tasks[:24]]), len(tasks)
    energy, losses = [1.0] * len(weights), []
    step = 1.0 if method == "none" else options.step
    for number in range(options.rounds + 1):
        with torch.no_grad():
            losses.append(float(loss(model, held)))
        picked = rng.choice(clients, 2, replace=False)
        changes = [train(model, tasks[client], options.rate) for client in picked]
        mean = [(a + b) / 2 for a, b in zip(*changes, strict=True)]
        update = METHODS[method](mean, k, options.seed * 1000 + number, energy)
        energy = [float(tensor.norm()) for tensor in update]
        with torch.no_grad():
            for weight, change in zip(weights, update, strict=True):
                weight.add_(step * change)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stories260k")
    parser.add_argument("--ratio", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--step", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shared = Path(os.environ["FULLFED_SHARED"])
    folder = shared / "models" / options.model
    tasks = batches(shared, AutoTokenizer.from_pretrained(folder))
    print(f"{options.model}, d / K = {options.ratio}, {len(tasks)} tasks; loss by round")
    for method in METHODS:
        for seed in range(options.seeds):
            options.seed = seed
            losses = run(folder, tasks, method, options)
            print(f"{method:26} seed {seed}  " + " ".join(f"{value:.3f}" for value in losses))


if __name__ == "__main__":
    main()
