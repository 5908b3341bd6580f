"""What rounding does to a long run of small updates on bfloat16 replicas.

    FULLFED_SHARED=... python benchmarks/bf16_replicas.py
    FULLFED_SHARED=... python benchmarks/bf16_replicas.py --optimizer adamw --rate 2e-5 --ratio 0 \
        --rounds 8 --steps 5 --model models/smollm2-135m

Real tasks (natural-instructions), at a learning rate so small that a round changes a weight by
less than bfloat16 can tell apart; Ferret, or with ``--ratio 0`` FedAvg. The same federation with
replicas of six kinds, all of which begin at the same numbers of bfloat16:

- float32:     the reference;
- autocast:    float32 that computes in bfloat16, ``local.precision = "bfloat16"``;
- nearest:     bfloat16, each update rounded to nearest (no recipe can ask for it);
- on the grid: bfloat16 with exact weights beside it that begin at the checkpoint (nor for this);
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fullfed.config import FederationTable, LocalTable, MemoryTable
from fullfed.config_data import DataTable
from fullfed.data.federated import FederatedData, divide, federate
from fullfed.engines.simulation import Simulation
from fullfed.evaluation.evaluate import evaluate_loss
from fullfed.federation.client import Worker
from fullfed.federation.messages import encode
from fullfed.federation.replica import Replica, Rounding
from fullfed.federation.server import run_round
from fullfed.methods import fedavg, ferret
from fullfed.methods.aggregation import WeightedMean
from fullfed.methods.composition import Composition
from fullfed.methods.setting import Setting
from machine import machine


class Nearest(Rounding):
    """Updates are added to the 16-bit weights themselves."""

    def masters(
        self, model: PreTrainedModel, replicated: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {}

    @contextmanager
    def widened(
        self,
        model: PreTrainedModel,
        replicated: Mapping[str, Tensor],
        masters: Mapping[str, Tensor],
        round: int,
    ) -> Iterator[None]:
        yield


class OnTheGrid(Rounding):
    """Exact weights that begin at the checkpoint itself."""

    def masters(
        self, model: PreTrainedModel, replicated: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {name: p.detach().float() for name, p in replicated.items() if p.itemsize == 2}


def replicas(seed: int) -> dict[str, tuple[torch.dtype, Rounding]]:
    """What each kind of replica is kept in, and how it rounds."""
    return {
        "float32": (torch.float32, Rounding()),
        "autocast": (torch.float32, Rounding()),
        "nearest": (torch.bfloat16, Nearest()),
        "on the grid": (torch.bfloat16, OnTheGrid("master", seed)),
        "stochastic": (torch.bfloat16, Rounding("stochastic", seed)),
        "master": (torch.bfloat16, Rounding("master", seed)),
    }


def make_method(
    model: PreTrainedModel, clients: int, kind: str, options: argparse.Namespace
) -> Composition:
    setting = Setting(
        federation=FederationTable(rounds=options.rounds, clients_per_round=2, seed=options.seed),
        local=LocalTable(
            optimizer=options.optimizer,
            learning_rate=options.rate,
            clip=1.0,
            batch_size=4,
            steps=options.steps,
            precision="bfloat16" if kind == "autocast" else "float32",
        ),
        memory=MemoryTable(),
        clients=clients,
        aggregation=WeightedMean("equal"),
        shapes={name: p.shape for name, p in model.named_parameters()},
    )
    if options.ratio == 0:
        return fedavg.build(setting, fedavg.FedAvgOptions())
    coordinates = setting.elements // options.ratio
    chosen = ferret.FerretOptions(coordinates=coordinates, seeds="shared", server_step=1.0)
    return ferret.build(setting, chosen)


def rounds(
    model: PreTrainedModel,
    kind: str,
    rounding: Rounding,
    data: FederatedData,
    options: argparse.Namespace,
) -> Iterator[int]:
    """Take the model from round to round; yields how many there have been, from 0."""
    method = make_method(model, len(data.clients), kind, options)
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
    """The model on bfloat16's grid, whatever it is held in."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = model if dtype == torch.bfloat16 else model.float()
    model.eval()
    return model


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
    parser.add_argument("--model", help="a folder; stories260k of FULLFED_SHARED by default")
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--rate", type=float, default=0.001)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--samples", type=int, default=200, help="that the loss is taken on")
    parser.add_argument(
        "--ratio", type=int, default=10, help="d / K of Ferret, small enough for a step of 1"
    )
    parser.add_argument("--kinds", nargs="+", help="of replicas; float32 first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="rows and machine, not a table")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    shared = Path(os.environ["FULLFED_SHARED"])
    folder = Path(options.model) if options.model else shared / "models/stories260k"
    task = DataTable(
        train="data/natural-instructions-train.jsonl.gz",
        test="data/natural-instructions-test.jsonl.gz",
        template="auto" if options.model else "alpaca",
        test_samples=options.samples,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = federate(*divide(task, options.seed, shared), task, tokenizer, 128)
    rows: list[dict[str, Any]] = []
    ways: dict[str, Tensor] = {}
    for name, (dtype, rounding) in replicas(options.seed).items():
        if options.kinds and name not in options.kinds:
            continue
        model, losses = load(folder, dtype), {}
        start = flat(model)
        for number in rounds(model, name, rounding, data, options):
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
