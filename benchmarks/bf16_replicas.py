"""What rounding does to a long run of small updates on bfloat16 replicas.

    FULLFED_SHARED=... python benchmarks/bf16_replicas.py

Ferret on a real model and real tasks (stories260k, natural-instructions), at a learning rate so
small that a round changes a weight by less than bfloat16 can tell apart. The same federation with
replicas of four kinds:

- float32:     the reference;
- nearest:     bfloat16, each update rounded to nearest (no recipe can ask for it);
- stochastic:  bfloat16, ``model.rounding = "stochastic"``;
- master:      bfloat16, ``model.rounding = "master"``.

The table is the loss on held-out tasks by round, computed in float32 from the weights as they are,
and where the last round's weights are from the base model, in lengths of the float32 replica's
way: along that way, and beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fullfed.config import DataTable, FederationTable, LocalTable, MemoryTable
from fullfed.data.federated import FederatedData, divide, federate
from fullfed.engines.simulation import Simulation
from fullfed.evaluation.evaluate import evaluate_loss
from fullfed.federation.client import Worker
from fullfed.federation.messages import encode
from fullfed.federation.replica import Replica, Rounding
from fullfed.federation.server import run_round
from fullfed.methods import ferret
from fullfed.methods.aggregation import WeightedMean
from fullfed.methods.composition import Composition
from fullfed.methods.setting import Setting
from machine import machine

RATIO = 10  # d / K: with this little noise the server's step can be 1


class Nearest(Rounding):
    """Updates are added to the 16-bit weights themselves."""

    def masters(
        self, model: PreTrainedModel, replicated: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {}

    def widened(self, *_: object) -> AbstractContextManager[None]:
        return nullcontext()


def replicas(seed: int) -> dict[str, tuple[torch.dtype, Rounding]]:
    """What each kind of replica is kept in, and how it rounds."""
    return {
        "float32": (torch.float32, Rounding()),
        "nearest": (torch.bfloat16, Nearest()),
        "stochastic": (torch.bfloat16, Rounding("stochastic", seed)),
        "master": (torch.bfloat16, Rounding("master", seed)),
    }


def make_method(model: PreTrainedModel, clients: int, options: argparse.Namespace) -> Composition:
    setting = Setting(
        federation=FederationTable(rounds=options.rounds, clients_per_round=2, seed=options.seed),
        local=LocalTable(learning_rate=options.rate, clip=1.0, batch_size=4, steps=5),
        memory=MemoryTable(),
        clients=clients,
        aggregation=WeightedMean("equal"),
        shapes={name: p.shape for name, p in model.named_parameters()},
    )
    coordinates = setting.elements // RATIO
    chosen = ferret.FerretOptions(coordinates=coordinates, seeds="shared", server_step=1.0)
    return ferret.build(setting, chosen)


def rounds(
    model: PreTrainedModel, rounding: Rounding, data: FederatedData, options: argparse.Namespace
) -> Iterator[int]:
    """Take the model from round to round; yields how many there have been, from 0."""
    method = make_method(model, len(data.clients), options)
    clients = {n: client.examples for n, client in enumerate(data.clients)}
    worker = Worker(Replica(model, method, rounding), method, clients)
    yield 0
    for number in range(options.rounds):
        result = run_round(method, Simulation(worker), number, worker.last, worker.replica.model)
        worker.deliver(encode(result.update))
        yield number + 1


def flat(model: PreTrainedModel) -> Tensor:
    """All weights in one row, float32."""
    return torch.cat([p.detach().float().flatten() for p in model.parameters()])


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def loss_in_float32(weights: Tensor, folder: Path, data: FederatedData) -> float:
    model = load(folder, torch.float32)
    torch.nn.utils.vector_to_parameters(weights, model.parameters())
    return evaluate_loss(model, data.test, 32)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one row a replica, losses by round."""
    heads = ["replica", *rows[0]["loss"], "along", "beside"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        losses = " | ".join(f"{value:.3f}" for value in row["loss"].values())
        lines.append(f"| {row['replica']} | {losses} | {row['along']:.2f} | {row['beside']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--rate", type=float, default=0.001)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="rows and machine, not a table")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    shared = Path(os.environ["FULLFED_SHARED"])
    folder = shared / "models/stories260k"
    table = DataTable(
        train="data/natural-instructions-train.jsonl.gz",
        test="data/natural-instructions-test.jsonl.gz",
        template="alpaca",
        test_samples=200,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = federate(*divide(table, options.seed, shared), table, tokenizer, 128)
    rows: list[dict[str, Any]] = []
    ways: dict[str, Tensor] = {}
    for name, (dtype, rounding) in replicas(options.seed).items():
        model, losses = load(folder, dtype), {}
        start = flat(model)
        for number in rounds(model, rounding, data, options):
            if number % (options.rounds // 4) == 0:
                losses[str(number)] = loss_in_float32(flat(model), folder, data)
                print(name, number, losses[str(number)], file=sys.stderr, flush=True)
        way = ways[name] = flat(model) - start
        reference = ways["float32"]
        along = float(way @ reference / reference.square().sum())
        beside = float((way - along * reference).norm() / reference.norm())
        rows.append({"replica": name, "loss": losses, "along": along, "beside": beside})
    if options.json:
        about = machine("cpu") | vars(options)
        print(json.dumps({"machine": about, "rows": rows}, indent=1))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
