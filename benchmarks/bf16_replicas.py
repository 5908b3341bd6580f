"""What rounding does to a long run of small updates on bfloat16 replicas.

    FULLFED_SHARED=... python benchmarks/bf16_replicas.py

Ferret's rounds on a real model and real tasks (stories260k, natural-instructions): each round some
clients take SGD steps from the replica, and their mean change is applied through a sign basis with
directions shared by all. Between rounds a replica is kept as one of

- float32:     the reference;
- nearest:     bfloat16, each update rounded to nearest;
- stochastic:  bfloat16, each update rounded up or down at random by the stream all replicas share;
- master:      float32, of which clients and evaluation see the rounding to bfloat16.

A visit is the product's: it computes in the dtype it sees, takes its steps on float32 copies, and
projects what those have become. The table is the loss on held-out tasks by round, computed in
float32 from the weights as seen, and where the last round's weights are from the base model, in
lengths of the float32 replica's way: along that way, and beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fullfed.data.batches import training_batches
from fullfed.data.federated import FederatedData, load_federated
from fullfed.evaluation.loss import evaluate_loss
from fullfed.federation.cohort import sample_cohort
from fullfed.federation.messages import Plan
from fullfed.methods.local import ByGradients
from fullfed.sketch import Purpose, SignBasis, Stream
from fullfed.sketch.pieces import Rounding
from fullfed.training.first_order import FirstOrder
from machine import machine

CLIENTS, STEPS, BATCH = 2, 5, 4  # of a round; of a visit; samples of a step
RATIO = 10  # d / K: with this little noise the server's step can be 1


@dataclass(frozen=True)
class Kept:
    """How a replica is kept between rounds.

    Attributes:
        dtype: of what updates are added to.
        seen: of what clients train from and users evaluate.
        rounding: of each update.
    """

    dtype: torch.dtype
    seen: torch.dtype
    rounding: Rounding = "nearest"


REPLICAS = {
    "float32": Kept(torch.float32, torch.float32),
    "nearest": Kept(torch.bfloat16, torch.bfloat16),
    "stochastic": Kept(torch.bfloat16, torch.bfloat16, "stochastic"),
    "master": Kept(torch.float32, torch.bfloat16),
}


class Run:
    """One replica's federation."""

    def __init__(
        self, kept: Kept, folder: Path, data: FederatedData, options: argparse.Namespace
    ) -> None:
        self._kept, self._data, self._options = kept, data, options
        self._shown = load(folder, torch.float32)  # what is evaluated
        self._client = load(folder, kept.seen)
        self.weights = [p.detach().to(kept.dtype, copy=True) for p in self._shown.parameters()]
        self._start = [w.clone() for w in self.weights]

    def round(self, number: int) -> None:
        seed = self._options.seed
        k = sum(w.numel() for w in self.weights) // RATIO
        basis = SignBasis(seed, number, coordinates=k)
        cohort = sample_cohort(seed, number, len(self._data.clients), CLIENTS)
        sent = torch.stack([self._visit(client, number, basis) for client in cohort])
        basis.reconstruct_(self.weights, sent.mean(0), rounding=self._kept.rounding)

    def _visit(self, client: int, number: int, basis: SignBasis) -> Tensor:
        options, weights = self._options, dict(self._client.named_parameters())
        self._show(self._client)
        before = [w.detach().clone() for w in weights.values()]
        stream = Stream(options.seed, Purpose.BATCHES, number, client)
        examples = self._data.clients[client].examples
        batches = training_batches(examples, BATCH, STEPS, stream)
        local = ByGradients(FirstOrder("sgd", options.rate, clip=1.0))
        done = local.improve(self._client, weights, batches, Plan(number, client))
        return basis.project([w.detach() for w in done.exact.values()], before=before)

    def loss(self) -> float:
        self._show(self._shown)
        return evaluate_loss(self._shown, self._data.test, 32)

    def way(self) -> Tensor:
        """From the base model to here, in one row."""
        pairs = zip(self.weights, self._start, strict=True)
        return torch.cat([(w.float() - s.float()).flatten() for w, s in pairs])

    def _show(self, model: PreTrainedModel) -> None:
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), self.weights, strict=True):
                parameter.copy_(weight.to(self._kept.seen))


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one row a replica, losses by round."""
    rounds = list(rows[0]["loss"])
    heads = ["replica", *rounds, "along", "beside"]
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
    sources = [
        str(shared / f"data/natural-instructions-{part}.jsonl.gz") for part in ("train", "test")
    ]
    data = load_federated(
        *sources, AutoTokenizer.from_pretrained(folder), "alpaca", 128,
        "task", None, 0.0, 1, options.seed, 200,
    )  # fmt: skip
    rows, ways = [], dict[str, Tensor]()
    for name, kept in REPLICAS.items():
        run = Run(kept, folder, data, options)
        losses = {"0": run.loss()}
        for number in range(options.rounds):
            run.round(number)
            if (number + 1) % (options.rounds // 4) == 0:
                losses[str(number + 1)] = run.loss()
                print(name, number + 1, losses[str(number + 1)], file=sys.stderr, flush=True)
        way = ways[name] = run.way()
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
