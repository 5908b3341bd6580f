"""What lying clients come to under each aggregation rule: the table of docs/results/attacks.md.

    python benchmarks/attacks.py run
    python benchmarks/attacks.py table

The embedded model on its generated tasks, ten clients a round, some of whom send something else
than they have learned, in every round that they are asked. Random parts of all tasks, or a task a
client. Rows go to docs/results/attacks.json as they come; ``run`` goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import parse_recipe
from fullfed.data.batches import Batch
from fullfed.engines.simulation import Simulation
from fullfed.errors import UserError
from fullfed.evaluation.evaluate import evaluate_loss
from fullfed.federation.client import StatesInMemory
from fullfed.federation.messages import Plan, encode
from fullfed.federation.method import NOTHING
from fullfed.federation.server import run_round
from fullfed.files import write_json
from fullfed.methods.local_work import LocalWork
from fullfed.randomness import Purpose, Stream
from fullfed.runs.assembly import assemble, make_replica, make_worker
from fullfed.sketch import perturb_
from fullfed.training.first_order import Improvement
from fullfed.training.watch import OnStep, unwatched
from machine import machine

ROWS = Path(__file__).resolve().parents[1] / "docs/results/attacks.json"
COHORT, ROUNDS, STEPS = 10, 6, 6
RULES = ("mean", "clipped-mean", "trimmed-mean", "median", "krum", "geometric-median")
ATTACKS = ("flip", "flip x9", "flip x100", "random", "boost x9")
LIARS = (1, 3)
METHODS: Mapping[str, dict[str, Any]] = {
    "FedAvg": {
        "method": {"name": "fedavg"},
        "codec": {"name": "dense", "precision": "bfloat16"},
    },
    "Ferret, shared directions": {
        "method": {"name": "ferret", "upload": "32KiB", "seeds": "shared"}
    },
    "Ferret, own directions": {"method": {"name": "ferret", "upload": "32KiB"}},
}
OWN = "Ferret, own directions"  # whose numbers only some rules can combine
DATA: Mapping[str, dict[str, Any]] = {
    "random parts": {"partition": "iid", "clients": 20},
    "a task a client": {"partition": "task"},
}
Run = tuple[str, str, str, str, int]  # data, method, rule, attack, liars of ten


def plan() -> Iterator[Run]:
    """All runs; one attack after another, so that each table is whole as early as can be."""
    for data in DATA:
        for method in METHODS:
            rules = ("mean", "clipped-mean") if method == OWN else RULES
            for rule in rules:
                yield data, method, rule, "none", 0
            for liars in LIARS:
                for attack in ATTACKS:
                    for rule in rules:
                        yield data, method, rule, attack, liars


@dataclass(frozen=True)
class Lying(LocalWork):
    """Honest work, after which liars put something else in the place of their change.

    Attributes:
        honest: the method's.
        share: every client whose number has a smaller remainder modulo ten lies.
        attack: one of ATTACKS.
    """

    honest: LocalWork
    share: int
    attack: str

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterator[Batch],  # type: ignore[override]
        plan: Plan,
        state: Mapping[str, Tensor],
        exact: Mapping[str, Tensor] = NOTHING,
        on_step: OnStep = unwatched,
    ) -> Improvement:
        before = [p.detach().clone() for p in parameters.values()]
        done = self.honest.improve(model, parameters, batches, plan, state, exact, on_step)
        if plan.client % 10 < self.share:
            self._lie([p.detach() for p in parameters.values()], before, plan)
        return done

    def _lie(self, after: Sequence[Tensor], before: Sequence[Tensor], plan: Plan) -> None:
        factor = {"flip": -1.0, "flip x9": -9.0, "flip x100": -100.0, "boost x9": 9.0}
        if self.attack in factor:
            for a, b in zip(after, before, strict=True):
                a.copy_(b + factor[self.attack] * (a - b))
            return
        # Noise as long as the change.
        norm = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True)) ** 0.5
        size = norm / sum(b.numel() for b in before) ** 0.5
        for a, b in zip(after, before, strict=True):
            a.copy_(b)
        perturb_(list(after), Stream(7, Purpose.PROBE, plan.round, plan.client), size)


def loss_of(run: Run) -> dict[str, Any]:
    """The loss before and after, and how many reports were refused."""
    data, method, rule, attack, liars = run
    tables = {
        "model": {"path": "builtin"},
        "data": {"train": "builtin", **DATA[data]},
        "federation": {"rounds": ROUNDS, "clients_per_round": COHORT},
        "local": {"learning_rate": 0.3, "momentum": 0.9, "steps": STEPS},
        "aggregation": {"name": rule, **({"liars": 0.3} if rule == "krum" else {})},
        **METHODS[method],
    }
    if rule == "trimmed-mean":
        tables["aggregation"]["trim"] = 0.3
    assembly = assemble(parse_recipe(tables, "the benchmark"))
    honest = assembly.method
    lying = replace(honest, local=Lying(honest.local, liars, attack))
    assembly = replace(assembly, method=lying)
    test, model = assembly.data.test, assembly.model
    base = evaluate_loss(model, test, 16)
    worker = make_worker(assembly, make_replica(assembly.recipe, model, lying), StatesInMemory())
    samples = {n: len(client.examples) for n, client in enumerate(assembly.data.clients)}
    refused, why = 0, ""
    for number in range(ROUNDS):
        try:
            result = run_round(
                lying, Simulation(worker), number, worker.last, model, samples=samples
            )
        except UserError as error:
            why = str(error)
            break
        refused += len(result.refused)
        worker.deliver(encode(result.update))
    return {
        "base": base,
        "loss": evaluate_loss(model, test, 16),
        "refused": refused,
        "stopped": why,
    }


def run_all(only: Sequence[str]) -> None:
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for run in plan():
        name = " | ".join(map(str, run))
        if name in rows or not all(part in name for part in only):
            continue
        rows[name] = {**loss_of(run), "machine": machine("cpu")}
        write_json(ROWS, rows)
        print(f"{name}: {rows[name]['loss']:.3f}", flush=True)


def table(rows: Mapping[str, Mapping[str, Any]], data: str, method: str) -> str:
    """Markdown: the share of the honest mean's drop in loss, a line an attack, a column a rule."""
    rules = [r for r in RULES if " | ".join((data, method, r, "none", "0")) in rows]
    whole = rows[" | ".join((data, method, "mean", "none", "0"))]
    lines = [f"| {method}, {data} | {' | '.join(rules)} |", "|---" * (len(rules) + 1) + "|"]
    cases = [("none", 0), *((attack, liars) for liars in LIARS for attack in ATTACKS)]
    for attack, liars in cases:
        cells = []
        for rule in rules:
            row = rows.get(" | ".join((data, method, rule, attack, str(liars))))
            cells.append("" if row is None else _share(row, whole))
        said = "nobody lies" if attack == "none" else f"{liars} of 10: {attack}"
        lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(row: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    if row["stopped"]:
        return "stopped"
    share = (row["base"] - row["loss"]) / (whole["base"] - whole["loss"])
    return f"{share:.2f}" if share > -9.995 else "worse than -10"


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of runs to do")
    options = parser.parse_args()
    if options.command == "run":
        run_all(options.only)
        return
    rows = json.loads(ROWS.read_text())
    for data in DATA:
        for method in METHODS:
            if any(name.startswith(f"{data} | {method} | mean | none") for name in rows):
                print(f"\n{table(rows, data, method)}")


if __name__ == "__main__":
    main()
