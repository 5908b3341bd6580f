"""Methods from the field beside FedAvg and FedIT, for docs/results/field.md.

    OMP_NUM_THREADS=1 python benchmarks/field.py run
    OMP_NUM_THREADS=1 python benchmarks/field.py run --only "fedit;slora" --seeds 1
    OMP_NUM_THREADS=1 python benchmarks/field.py run --model base-4m --seeds 1
    OMP_NUM_THREADS=1 python benchmarks/field.py search --only "fedit;slora"
    python benchmarks/field.py table
    python benchmarks/field.py table --model base-4m

Dolly and natural-instructions, clients alike (Dirichlet 100) and unlike (Dirichlet 0.1), a fifth of
them a round. A run is a row of docs/results/field.json by its label, model, data, alpha and seed;
rows that are there are not measured again. Another method is an entry of ``METHODS`` and, for its
claim, a line of the page. FULLFED_SHARED names the folder of real data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fullfed
from fullfed.comparisons.search import Trial, Trials, next_rate
from fullfed.files import write_json
from machine import machine

ROWS = Path(__file__).resolve().parents[1] / "docs/results/field.json"
ALPHAS, SEEDS = (100.0, 0.1), 3
MODELS = {"stories260k": 0.003, "base-4m": 0.0003}  # and the rate of all parameters
TRIAL_ROUNDS = 4
DATA: Mapping[str, dict[str, Any]] = {  # of each the test set is of what no client has
    "dolly": {
        "train": "$FULLFED_SHARED/data/dolly-15k-short.jsonl.gz",
        "hold_out": "summarization",
    },
    "natural-instructions": {
        "train": "$FULLFED_SHARED/data/natural-instructions-train.jsonl.gz",
        "test": "$FULLFED_SHARED/data/natural-instructions-test.jsonl.gz",
    },
}
BASE: dict[str, Any] = {
    "model": {},
    "data": {
        "test_samples": 100,
        "partition": "dirichlet",
        "clients": 20,
        "min_samples": 4,
        "template": "alpaca",
        "max_length": 160,
    },
    "federation": {"rounds": 8, "clients_per_round": 4},
    "local": {"optimizer": "adamw", "steps": 8, "batch_size": 4},
    "evaluation": {"every": 32},
}
# Rates are the best of three that ``search`` tried, on Dolly's alike clients; FedIT's serves
# whatever trains adapters, FedAvg's EmbracingFL. FedCyBGD's is that of docs/results/fedcybgd.md.
# The second model's own were searched for FedAvg, and for FedIT, which has the same.
_ADAPTERS = {"learning_rate": 0.009487}
_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_LORA = {"targets": _SEVEN, "rank": 16, "alpha": 16.0}
_FLASC = {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.5}
_FLASC_SERVER = {"name": "flasc", "learning_rate": 0.01, **_LORA}
_CLASSES = {"name": "embracing-fl", "memory": {"strong": 1.0, "moderate": 0.4, "weak": 0.2}}
_WITHOUT = {"strong": 0.25, "moderate": 0.25, "weak": 0.0}
_PREFIXES = {"learning_rate": 0.1265, "weight_decay": 0.1, "optimizer_state": "kept"}
# What each label changes, table by table.
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"method": {"name": "fedavg"}},
    "fedit": {"method": {"name": "fedit", **_LORA}, "local": _ADAPTERS},
    "fedit, rank 4": {
        "method": {"name": "fedit", **_LORA, "rank": 4, "alpha": 4.0},
        "local": _ADAPTERS,
    },
    "flexlora": {"method": {"name": "flexlora", "targets": _SEVEN}, "local": _ADAPTERS},
    "slora": {"method": {"name": "slora", "sparse_rounds": 2}, "local": _ADAPTERS},
    "flasc": {"method": _FLASC_SERVER, "local": _FLASC},
    "flasc, all sent": {"method": {**_FLASC_SERVER, "up": 1.0, "down": 1.0}, "local": _FLASC},
    "embracing-fl": {"method": _CLASSES},
    "embracing-fl, without weak": {"method": {**_CLASSES, "clients": _WITHOUT}},
    "blockllm": {"method": {"name": "blockllm", "patience": 3}, "local": {"optimizer": "adam"}},
    "fedcybgd": {
        "method": {"name": "fedcybgd"},
        "federation": {"rounds": 32, "clients_per_round": 1},  # one after another
        "local": {"learning_rate": 0.001},
    },
    "fedpeptao": {"method": {"name": "fedpeptao"}, "local": _PREFIXES},
    "fedbpt": {"method": {"name": "fedbpt"}},
    "fedbpt, the loss alone": {"method": {"name": "fedbpt", "perturbed": 0.0}},
}


class Run(NamedTuple):
    """What a row is of."""

    label: str
    model: str
    data: str
    alpha: float
    seed: int

    @property
    def key(self) -> str:
        return f"{self.label} | {self.model} | {self.data} | {self.alpha:g} | {self.seed}"

    def recipe(self) -> dict[str, Any]:
        """Its recipe, as it stands in TOML."""
        tables = {name: dict(table) for name, table in BASE.items()}
        for name, table in METHODS[self.label].items():
            tables[name] = {**tables.get(name, {}), **table}
        tables["model"]["path"] = f"$FULLFED_SHARED/models/{self.model}"
        tables["local"].setdefault("learning_rate", MODELS[self.model])
        tables["data"] |= {**DATA[self.data], "alpha": self.alpha}
        tables["federation"]["seed"] = self.seed
        return tables


def runs(labels: Sequence[str], model: str, seeds: int) -> Iterator[Run]:
    """All labels of a seed before the next seed."""
    for seed, label, data, alpha in product(range(seeds), labels, DATA, ALPHAS):
        yield Run(label, model, data, alpha, seed)


def measure(run: Run) -> dict[str, float]:
    """Loss before and after, and bytes of all visits both ways."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fullfed-field-") as folder:
        done = fullfed.run(run.recipe(), Path(folder) / "run")
        return {
            "initial": done["loss"]["initial"],
            "final": done["loss"]["final"],
            "up": done.bytes_up,
            "down": done.bytes_down,
            "seconds": round(time.perf_counter() - began, 1),
        }


def search(label: str, changes: Sequence[str], count: int) -> list[list[float | None]]:
    """(rate, loss) of each trial, as ``fullfed compare`` searches, on Dolly's alike clients.

    The losses are of samples that are held out of the clients' own, not of the test set.
    """
    recipe = fullfed.load_recipe(Run(label, "stories260k", "dolly", ALPHAS[0], 0).recipe(), changes)
    trials, found = Trials(recipe, TRIAL_ROUNDS), list[Trial]()
    while len(found) < count:
        found.append(trials.run(next_rate(recipe.local.learning_rate, found)))
    return [[trial.learning_rate, trial.loss] for trial in found]


def add(rows: dict[str, Any], name: str, value: Any) -> None:
    rows[name] = value
    write_json(ROWS, rows)
    print(name, json.dumps(value), flush=True)


def table(rows: Mapping[str, Any], labels: Sequence[str], model: str, seeds: int) -> str:
    """Markdown: a line a method; its loss of each setting, and bytes of a run in the mean."""
    settings = list(product(DATA, ALPHAS))
    heads = [f"{data}, {alpha:g}" for data, alpha in settings]
    lines = [f"| | {' | '.join(heads)} | KB up | KB down |", "|---" * (3 + len(heads)) + "|"]
    before = [_values(rows, Run("fedavg", model, d, a, seeds), "initial") for d, a in settings]
    lines.append(f"| before | {' | '.join(map(_cell, before))} | | |")
    for label in labels:
        after = [_values(rows, Run(label, model, d, a, seeds), "final") for d, a in settings]
        if any(after):
            sent = [_mean_kilobytes(rows, label, model, seeds, way) for way in ("up", "down")]
            lines.append(f"| {label} | {' | '.join([*map(_cell, after), *sent])} |")
    return "\n".join(lines)


def _values(rows: Mapping[str, Any], before: Run, name: str) -> list[float]:
    """Of the seeds before that of a run, as far as they are measured."""
    keys = [before._replace(seed=seed).key for seed in range(before.seed)]
    return [rows[key][name] for key in keys if key in rows]


def _mean_kilobytes(rows: Mapping[str, Any], label: str, model: str, seeds: int, way: str) -> str:
    sent = [rows[run.key][way] for run in runs([label], model, seeds) if run.key in rows]
    return f"{statistics.fmean(sent) / 1e3:,.0f}"


def _cell(values: Sequence[float]) -> str:
    """Mean and standard deviation; of one seed the number alone."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "search", "table"))
    parser.add_argument("--only", help="labels, with semicolons between them")
    parser.add_argument("--model", choices=MODELS, default="stories260k")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--trials", type=int, default=3, help="of a search, for each label")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, in a search")
    options = parser.parse_args()
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    labels = options.only.split(";") if options.only else list(METHODS)
    if unknown := [label for label in labels if label not in METHODS]:
        parser.error(f"there is no {unknown[0]!r}; choose among {'; '.join(METHODS)}")
    torch.set_num_threads(1)
    if options.command == "table":
        print(table(rows, labels, options.model, options.seeds))
    elif options.command == "search":
        for label in labels:
            name = " | ".join(["search", label, *options.set])
            add(rows, name, search(label, options.set, options.trials))
    else:
        rows.setdefault("machine", machine("cpu"))
        for run in runs(labels, options.model, options.seeds):
            if run.key not in rows:
                add(rows, run.key, measure(run))


if __name__ == "__main__":
    main()
