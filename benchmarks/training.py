"""Tokens a second of a visit, beside plain torch and transformers' Trainer.

    python benchmarks/training.py                                    the small models
    python benchmarks/training.py --models FOLDER --batch 4 --length 192 --steps 5
    python benchmarks/training.py --models stories260k --repeats 2 --json

One process and one run for each model and precision: all train the same weights on the same
batches of random tokens with AdamW, clipped; they take turns, and ratios are of neighbours. Small
models are looked for in $FULLFED_SHARED/models.

- visit: a client's visit of FedAvg, until the change is there to be encoded.
- loop: the training loop as one writes it, with the visit's loss, which computes the logits of
  answers alone. loop, all logits: with the model's own loss, of every position.
- Trainer: transformers', from its first step to its end.
- precisions: float32; autocast (float32 weights, local.precision = "bfloat16"); bfloat16 weights,
  which a visit trains as float32 copies, and the others as they are.
- tokens: of prompts and answers. --json also says which share of positions is padding, which share
  of tokens answers.
- floor: 6 FLOP for each token and weight (2 forward, 4 backward), at the rate of the same products
  of matrices by torch.matmul alone, with a batch's sizes, in float32 or bfloat16. Weights are those
  of linear layers; of the output layer for answer tokens only. The embedding table's look-up,
  attention's products of activations, norms, the optimizer and padding have no share of it.
- measuring: what Ferret's visit does beside training for its automatic step, and encoding.
- peak: of a process of its own that does one visit, beside the formula of docs/memory.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import memory
from contenders import CONTENDERS, DTYPES, Task, build_fedavg, visit
from fullfed.config import MemoryTable
from fullfed.data.tokens import TokenizedExample
from fullfed.headway import Headway
from fullfed.methods import ferret
from fullfed.methods.composition import Composition
from fullfed.methods.setting import Setting
from fullfed.runs.loading import load_model
from fullfed.training.precision import autocast
from machine import machine

_BYTES = {"float32": 20, "bfloat16": 22}  # a parameter of FedAvg with AdamW: docs/memory.md


def build_ferret(setting: Setting) -> Composition:
    coordinates = max(setting.elements // 1000, 1)
    return ferret.build(setting, ferret.FerretOptions(coordinates=coordinates))


def ferret_parts(task: Task) -> dict[str, float]:
    """Seconds of a visit of Ferret: training, what the automatic step measures, encoding."""
    method, ended = task.method(build_ferret), [0.0]

    def observer(headway: Headway) -> None:
        if headway.done == headway.of:
            ended[0] = task.now()

    (plan,) = method.plans(0, None)
    began = task.now()
    done = method.train(task.model, plan, task.examples, None, observer=observer)
    training = ended[0] - began
    measuring = done.train_seconds - training
    return {"training": training, "measuring": measuring, "encoding": done.encode_seconds}


def floor_seconds(task: Task) -> tuple[float, float]:
    """(seconds of the batches' products of matrices alone, FLOP a second in them)."""
    head = task.model.get_output_embeddings()
    linear = [m for m in task.model.modules() if isinstance(m, nn.Linear) and m is not head]
    shapes = [(m.out_features, m.in_features) for m in linear]
    rows, answers = (round(total / task.steps) for total in (task.tokens, task.answers))
    counted = {(rows, *shape): shapes.count(shape) for shape in set(shapes)}
    counted[answers, head.out_features, head.in_features] = 1
    dtype = torch.float32 if task.precision == "float32" else torch.bfloat16
    flop = 6 * task.steps * sum(n * r * out * wide for (r, out, wide), n in counted.items())
    seconds = task.steps * sum(
        n * _products(task, r, out, wide, dtype) for (r, out, wide), n in counted.items()
    )
    return seconds, flop / seconds


def _products(task: Task, rows: int, out: int, wide: int, dtype: torch.dtype) -> float:
    """Seconds of one layer's three products; the fastest of a few."""
    device = task.device
    x, y = (torch.randn(rows, n, device=device, dtype=dtype) for n in (wide, out))
    weight = torch.randn(out, wide, device=device, dtype=dtype)
    found = []
    for _ in range(4):
        began = task.now()
        torch.matmul(x, weight.T)
        torch.matmul(y, weight)
        torch.matmul(y.T, x)
        found.append(task.now() - began)
    return min(found)


def examples(count: int, length: int, vocabulary: int) -> list[TokenizedExample]:
    """Random tokens, between half of ``length`` and all of it; the second half is the answer."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(length // 2, length + 1, count)
    return [
        TokenizedExample.pair(draw.integers(0, vocabulary, size, dtype=np.int32), int(size) // 2)
        for size in sizes
    ]


def make_task(folder: str, precision: str, arguments: argparse.Namespace) -> Task:
    model, _ = load_model(folder, DTYPES[precision])
    count = arguments.batch * arguments.steps
    own = examples(count, arguments.length, model.config.get_text_config().vocab_size)
    return Task(model, precision, arguments.steps, arguments.batch, own)


def measure(folder: str, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything of one model in one precision."""
    task, seconds = make_task(folder, precision, arguments), dict[str, list[float]]()
    names = list(CONTENDERS)
    for repeat in range(arguments.repeats + 1):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            task.restore()
            spent = CONTENDERS[name](task)
            if repeat:  # the first warms caches up
                seconds.setdefault(name, []).append(spent)
    task.restore()
    parts = ferret_parts(task)
    task.restore()
    at_best, rate = floor_seconds(task)
    speeds = {name: task.tokens / statistics.median(own) for name, own in seconds.items()}
    return {
        "model": Path(folder).name,
        "precision": precision,
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "padding": task.padding,
        "answers": task.answers / task.tokens,
        "tokens_a_second": speeds,
        "visit_to": {
            name: spread([o / v for o, v in zip(own, seconds["visit"], strict=True)])
            for name, own in seconds.items()
            if name != "visit"
        },
        "floor": {
            "flop_a_second": rate,
            "share": {n: at_best / statistics.median(own) for n, own in seconds.items()},
        },
        "ferret": parts,
        "memory": in_own_process(folder, precision, arguments),
    }


def spread(ratios: list[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def in_own_process(folder: str, precision: str, arguments: argparse.Namespace) -> dict[str, int]:
    sizes = ("batch", "length", "steps")
    options = [text for n in sizes for text in (f"--{n}", str(getattr(arguments, n)))]
    command = [sys.executable, __file__, "--one", folder, precision, *options]
    told = subprocess.run(
        command, env={**os.environ, **memory._GLIBC}, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, int] = json.loads(told.stdout.splitlines()[-1])
    return found


def one_visit(folder: str, precision: str, arguments: argparse.Namespace) -> dict[str, int]:
    """The peak of a visit in this process, less what there was before the model."""
    device = memory._device()
    warm = memory.SHAPES["tiny"].model(device).to(getattr(torch, DTYPES[precision]))
    visit(Task(warm, precision, 1, 1, examples(1, 32, 512)))  # code and threads are there now
    del warm
    empty = memory._now(device)
    task = make_task(folder, precision, arguments)
    task.start.clear()
    method = task.method(build_fedavg)
    (plan,) = method.plans(0, None)
    memory._forget_peak(device)
    method.train(task.model, plan, task.examples, None)
    peak = memory._peak(device) - empty
    longest, every = sorted(task.examples, key=len)[-task.batch :], list(task.model.parameters())
    with autocast(task.local.precision, task.device):
        held = memory._activations(task.model, every, MemoryTable(), longest)
    widest, d = max(p.numel() for p in every), sum(p.numel() for p in every)
    each = _BYTES[DTYPES[precision]]
    return {"peak": peak, "activations": held, "formula": each * d + 8 * widest + held}


_HEAD = (
    "| model | precision | visit, tokens/s | to loop | to loop, all logits | to Trainer "
    "| of the floor | measuring / training | peak | formula |\n" + "|---" * 10 + "|"
)


def line(found: dict[str, Any]) -> str:
    ratios = [
        f"{r['median']:.3f} ({r['least']:.3f} to {r['most']:.3f})"
        for r in found["visit_to"].values()
    ]
    parts, needs = found["ferret"], found["memory"]
    cells = [
        found["model"],
        found["precision"],
        f"{found['tokens_a_second']['visit']:,.0f}",
        *ratios,
        f"{found['floor']['share']['visit']:.2f}",
        f"{parts['measuring'] / parts['training']:.2f}",
        f"{needs['peak'] / 2**20:,.0f} MiB",
        f"{needs['formula'] / 2**20:,.0f} MiB",
    ]
    return f"| {' | '.join(cells)} |"


def folder_of(model: str) -> str:
    """The folder of a model that is named, or its own."""
    shared = Path(os.environ.get("FULLFED_SHARED", "")) / "models" / model
    return str(shared) if shared.is_dir() and not Path(model).is_dir() else model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["stories260k", "base-4m"])
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=192, help="tokens of the longest sample")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        folder, precision = arguments.one
        print(json.dumps(one_visit(folder, precision, arguments)))
        return
    if not arguments.json:
        print(_HEAD, flush=True)
    rows = []
    for model in arguments.models:
        for precision in arguments.precisions:
            rows.append(measure(folder_of(model), precision, arguments))
            if not arguments.json:
                print(line(rows[-1]), flush=True)
    if arguments.json:
        settings = {n: getattr(arguments, n) for n in ("batch", "length", "steps", "repeats")}
        about = {"machine": machine(memory._device()), "settings": settings}
        print(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
