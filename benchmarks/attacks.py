"""What lying clients come to under each aggregation rule: the tables of docs/results/attacks.md.

    python benchmarks/attacks.py run
    python benchmarks/attacks.py table

The embedded model on its generated tasks, ten clients a round of twenty, some of whom lie
(liars.py). Random parts of all tasks, or shares of each by a Dirichlet distribution. Rows go to
docs/results/attacks.json as they come; ``run`` goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from fullfed.config import parse_recipe
from fullfed.errors import UserError
from fullfed.evaluation.evaluate import evaluate_loss
from fullfed.federation.client import StatesInMemory
from fullfed.federation.messages import encode
from fullfed.federation.server import run_round
from fullfed.files import write_json
from fullfed.runs.assembly import assemble, make_replica, make_worker
from liars import ATTACKS, LiarsLast, made_to_lie
from machine import machine

ROWS = Path(__file__).resolve().parents[1] / "docs/results/attacks.json"
COHORT, ROUNDS, STEPS = 10, 6, 6
RULES = ("mean", "clipped-mean", "trimmed-mean", "median", "krum", "geometric-median")
# Those of the methods whose numbers only some rules can combine, or that send no scalars.
OWN, DENSE = "Ferret, own directions", "FedAvg"
LIARS = (1, 3)
METHODS: Mapping[str, dict[str, Any]] = {
    DENSE: {
        "method": {"name": "fedavg"},
        "codec": {"name": "dense", "precision": "bfloat16"},
    },
    "Ferret, shared directions": {
        "method": {"name": "ferret", "upload": "32KiB", "seeds": "shared"}
    },
    OWN: {"method": {"name": "ferret", "upload": "32KiB"}},
}
DATA: Mapping[str, dict[str, Any]] = {
    "random parts": {"partition": "iid", "clients": 20},
    "Dirichlet 0.1": {"partition": "dirichlet", "alpha": 0.1, "clients": 20},
}
Run = tuple[str, str, str, str, int]  # data, method, rule, attack, liars of ten


def plan() -> Iterator[Run]:
    """All runs, the most telling ones first: what rules cost, then what bounds one liar of ten."""
    honest = [("none", 0)]
    lying = [(attack, liars) for liars in LIARS for attack in ATTACKS]
    first = ("mean", "clipped-mean")
    others = [rule for rule in RULES if rule not in first]
    for rules, cases in ((RULES, honest), (first, lying), (others, lying)):
        for (attack, liars), data, method in product(cases, DATA, METHODS):
            if not (attack == "scalars" and method == DENSE):
                possible = [rule for rule in rules if method != OWN or rule in first]
                yield from ((data, method, rule, attack, liars) for rule in possible)


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
    assembly = made_to_lie(assemble(parse_recipe(tables, "the benchmark")), liars, attack)
    test, model, method = assembly.data.test, assembly.model, assembly.method
    base = evaluate_loss(model, test, 16)
    worker = make_worker(assembly, make_replica(assembly.recipe, model, method), StatesInMemory())
    engine = LiarsLast(worker, share=liars)
    samples = {n: len(client.examples) for n, client in enumerate(assembly.data.clients)}
    refused, why = 0, ""
    for number in range(ROUNDS):
        try:
            result = run_round(method, engine, number, worker.last, model, samples=samples)
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
