"""What lying clients come to under each aggregation rule: the tables of docs/results/attacks.md.

    python benchmarks/attacks.py run [--seeds 3]
    python benchmarks/attacks.py table

The embedded model on its generated tasks, ten clients a round of twenty, some of whom lie
(liars.py). Random parts of all tasks, or shares of each by a Dirichlet distribution. Rows go to
docs/results/attacks.json as they come; ``run`` goes on with what is missing. Seeds after the first
are of the default rule with one liar of ten, without and with the check.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, median_low
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fullfed.config import parse_recipe
from fullfed.evaluation.evaluate import evaluate_loss
from fullfed.files import write_json
from fullfed.quickstart.kinds import draw_examples
from fullfed.quickstart.tasks import FEDERATED
from fullfed.runs.assembly import assemble
from liars import ATTACKS, carry_out, made_to_lie
from machine import machine

ROWS = Path(__file__).resolve().parents[1] / "docs/results/attacks.json"
COHORT, ROUNDS, STEPS = 10, 6, 6
# Each column: the recipe's tables.
RULES: Mapping[str, dict[str, Any]] = {
    "mean": {"aggregation": {"name": "mean"}},
    "clipped-mean": {"aggregation": {"name": "clipped-mean"}},
    "clipped-mean, check": {"aggregation": {"name": "clipped-mean"}, "check": {"samples": 96}},
    "trimmed-mean": {"aggregation": {"name": "trimmed-mean", "trim": 0.3}},
    "median": {"aggregation": {"name": "median"}},
    "krum": {"aggregation": {"name": "krum", "liars": 0.3}},
    "geometric-median": {"aggregation": {"name": "geometric-median"}},
    "majority-vote": {"aggregation": {"name": "majority-vote"}},
}
DEFAULT, CHECKED, VOTE = "clipped-mean", "clipped-mean, check", "majority-vote"
DENSE, SHARED = "FedAvg", "Ferret, shared directions"
OWN, ONE_BIT = "Ferret, own directions", "Ferret, shared directions, one bit"
METHODS: Mapping[str, dict[str, Any]] = {
    DENSE: {
        "method": {"name": "fedavg"},
        "codec": {"name": "dense", "precision": "bfloat16"},
    },
    SHARED: {"method": {"name": "ferret", "upload": "32KiB", "seeds": "shared"}},
    OWN: {"method": {"name": "ferret", "upload": "32KiB"}},
    ONE_BIT: {  # 32 KiB as well
        "method": {"name": "ferret", "coordinates": 258_000, "bits": 1, "seeds": "shared"}
    },
}
COLUMNS: Mapping[str, Sequence[str]] = {  # of each method
    DENSE: [rule for rule in RULES if rule != VOTE],
    SHARED: [rule for rule in RULES if rule != VOTE],
    OWN: ["mean", DEFAULT, CHECKED],  # whose numbers other rules cannot combine
    ONE_BIT: ["mean", DEFAULT, VOTE],
}
LIARS = (1, 3)
DATA: Mapping[str, dict[str, Any]] = {
    "random parts": {"partition": "iid", "clients": 20},
    "Dirichlet 0.1": {"partition": "dirichlet", "alpha": 0.1, "clients": 20},
}
Run = tuple[str, str, str, str, int]  # data, method, rule, attack, liars of ten
HONEST = ("none", 0)
_SEEDS_LIMIT = 10


def plan() -> Iterator[Run]:
    """All runs, the most telling ones first: what rules cost, then what bounds one liar of ten."""
    lying = [(attack, liars) for liars in LIARS for attack in ATTACKS]
    first, second = (DEFAULT, CHECKED, VOTE), ("mean",)
    others = [rule for rule in RULES if rule not in (*first, *second)]
    for rules, cases in ((RULES, [HONEST]), (first, lying), (second, lying), (others, lying)):
        for (attack, liars), method, data in product(cases, METHODS, reversed(list(DATA))):
            if not (attack == "scalars" and method == DENSE):  # which sends none
                possible = [rule for rule in rules if rule in COLUMNS[method]]
                yield from ((data, method, rule, attack, liars) for rule in possible)


def named(run: Run, seed: int) -> str:
    """A row's key."""
    return " | ".join(map(str, run)) + (f" | seed {seed}" if seed else "")


def further() -> Iterator[Run]:
    """The runs that are made with further seeds as well."""
    cases = [HONEST, *((attack, 1) for attack in ATTACKS)]
    for (attack, liars), method, data in product(cases, METHODS, DATA):
        if not (attack == "scalars" and method == DENSE):
            rules = (*(("mean",) if liars == 0 else ()), DEFAULT, CHECKED)
            possible = [rule for rule in rules if rule in COLUMNS[method]]
            yield from ((data, method, rule, attack, liars) for rule in possible)


def held_out(folder: Path) -> Path:
    """A file of four cases of each task that neither clients nor the test set have."""
    records = [
        {"instruction": example.instruction, "input": example.input, "output": example.output}
        for name, kind in FEDERATED.items()
        for example in draw_examples(name, kind, 4, 1, "train")
    ]
    file = folder / "held-out.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def loss_of(run: Run, seed: int, folder: Path) -> dict[str, Any]:
    """The loss before and after, and how many reports were refused.

    Args:
        folder: for the check's samples.
    """
    data, method_name, rule, attack, liars = run
    tables = {
        "model": {"path": "builtin"},
        "data": {"train": "builtin", **DATA[data]},
        "federation": {"rounds": ROUNDS, "clients_per_round": COHORT, "seed": seed},
        "local": {"learning_rate": 0.3, "momentum": 0.9, "steps": STEPS},
        **RULES[rule],
        **METHODS[method_name],
    }
    if "check" in tables:
        tables["check"] = {**tables["check"], "data": str(held_out(folder))}
    assembly = made_to_lie(assemble(parse_recipe(tables, "the benchmark")), liars, attack)
    test, model = assembly.data.test, assembly.model
    base = evaluate_loss(model, test, 16)
    outcome = carry_out(assembly, liars, ROUNDS)
    return {
        "base": base,
        "loss": evaluate_loss(model, test, 16),
        **outcome,
    }


def run_all(only: Sequence[str], seeds: int) -> None:
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    runs = [(run, 0) for run in plan()]
    runs += [(run, seed) for seed in range(1, seeds) for run in further()]
    for run, seed in runs:
        name = named(run, seed)
        if name in rows or not all(part in name for part in only):
            continue
        with TemporaryDirectory() as folder:
            rows[name] = {**loss_of(run, seed, Path(folder)), "machine": machine("cpu")}
        write_json(ROWS, rows)
        print(f"{name}: {rows[name]['loss']:.3f}", flush=True)


def table(rows: Mapping[str, Mapping[str, Any]], data: str, method: str) -> str:
    """Markdown: the share of the honest mean's drop in loss, a line an attack, a column a rule."""
    rules = COLUMNS[method]
    whole = rows[" | ".join((data, method, "mean", "none", "0"))]
    lines = [f"| {method}; {data} | {' | '.join(rules)} |", "|---" * (len(rules) + 1) + "|"]
    for attack, liars in (HONEST, *((a, n) for n in LIARS for a in ATTACKS)):
        found = [rows.get(" | ".join((data, method, r, attack, str(liars)))) for r in rules]
        if any(found):
            said = "nobody lies" if liars == 0 else f"{liars} of 10: {attack}"
            cells = ["" if row is None else _share(row, whole) for row in found]
            lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: where there are several seeds, each one's share of its own honest mean's drop."""
    lines = ["| one of ten | data; method | rule | shares | mean |", "|---|---|---|---|---|"]
    for run in further():
        data, method, rule, attack, _ = run
        shares = []
        for seed in range(_SEEDS_LIMIT):
            own = rows.get(named(run, seed))
            whole = rows.get(named((data, method, "mean", *HONEST), seed))
            if rule != "mean" and own is not None and whole is not None:
                shares.append((own["base"] - own["loss"]) / (whole["base"] - whole["loss"]))
        if len(shares) > 1:
            each, middle = ", ".join(f"{share:.2f}" for share in shares), fmean(shares)
            lines.append(f"| {attack} | {data}; {method} | {rule} | {each} | {middle:.3f} |")
    return "\n".join(lines)


def gains(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: of runs with a check, gains as shares of the cohort's median in their round."""
    lines = ["| run | least honest | liars: least | most |", "|---|---|---|---|"]
    for name, row in rows.items():
        shares: dict[str, list[float]] = {"honest": [], "liars": []}
        for found in row.get("gains", ()):
            middle = median_low([*found["honest"], *found["liars"]])
            for who, own in found.items():
                shares[who] += [gain / middle for gain in own if middle > 0]
        if shares["honest"]:
            lying = shares["liars"]
            cells = (min(shares["honest"]), *((min(lying), max(lying)) if lying else ()))
            said = [*(f"{cell:.2f}" for cell in cells), "", ""][:3]
            lines.append(f"| {name.replace(' | ', '; ')} | {' | '.join(said)} |")
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
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if options.command == "run":
        run_all(options.only, options.seeds)
        return
    rows = json.loads(ROWS.read_text())
    for method, data in product(METHODS, DATA):
        if f"{data} | {method} | mean | none | 0" in rows:
            print(f"\n{table(rows, data, method)}")
    print(f"\n{spread(rows)}\n\n{gains(rows)}")


if __name__ == "__main__":
    main()
