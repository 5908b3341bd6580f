"""Methods from the field beside FedAvg and FedIT, for docs/results/field.md.

    OMP_NUM_THREADS=1 python benchmarks/field.py run
    OMP_NUM_THREADS=1 python benchmarks/field.py run --only "fedit;slora" --seeds 1
    python benchmarks/field.py table

stories260k on Dolly, clients alike (Dirichlet 100) and unlike (Dirichlet 0.1), a tenth of them a
round. A run is a row of docs/results/field.json by its label, alpha and seed; rows that are there
are not measured again. Another method is an entry of ``METHODS`` and, for its claim, a line of the
page. FULLFED_SHARED names the folder of real data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import fullfed
from fullfed.files import write_json
from machine import machine

ROWS = Path(__file__).resolve().parents[1] / "docs/results/field.json"
ALPHAS, SEEDS = (100.0, 0.1), 3
_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASE: dict[str, Any] = {
    "model": {"path": "$FULLFED_SHARED/models/stories260k"},
    "data": {
        "train": "$FULLFED_SHARED/data/dolly-15k-short.jsonl.gz",
        "hold_out": "summarization",
        "test_samples": 200,
        "partition": "dirichlet",
        "clients": 50,
        "min_samples": 4,
        "template": "alpaca",
        "max_length": 256,
    },
    "federation": {"rounds": 20, "clients_per_round": 5},
    "local": {"optimizer": "adamw", "learning_rate": 0.003, "steps": 10, "batch_size": 4},
    "evaluation": {"every": 20},
}
# What each label changes, table by table. Learning rates were not searched: 0.003 is where those of
# recipes/ begin for adapters, 0.001 for all parameters.
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"method": {"name": "fedavg"}, "local": {"learning_rate": 0.001}},
    "fedit": {"method": {"name": "fedit", "targets": _SEVEN}},
    "fedit, rank 4": {"method": {"name": "fedit", "rank": 4, "alpha": 4.0, "targets": _SEVEN}},
    "fedit, rank 32": {"method": {"name": "fedit", "rank": 32, "alpha": 32.0, "targets": _SEVEN}},
    "flexlora": {"method": {"name": "flexlora", "targets": _SEVEN}},
    "slora": {"method": {"name": "slora"}},
    "fedbpt": {"method": {"name": "fedbpt"}, "local": {"steps": 8, "batch_size": 16}},
    "fedpeptao": {
        "method": {"name": "fedpeptao"},
        "local": {"learning_rate": 0.04, "weight_decay": 0.1, "optimizer_state": "kept"},
    },
    "fedpeptao, averaging alone": {
        "method": {"name": "fedpeptao", "server_rate": 0.0},
        "local": {"learning_rate": 0.04, "weight_decay": 0.1, "optimizer_state": "kept"},
    },
    "slora, 10 % of entries": {"method": {"name": "slora", "density": 0.1}},
}


def recipe(label: str, alpha: float, seed: int) -> dict[str, Any]:
    """The recipe of a row, as it stands in TOML."""
    tables = {name: dict(table) for name, table in BASE.items()}
    for name, table in METHODS[label].items():
        tables[name] = {**tables.get(name, {}), **table}
    tables["data"]["alpha"] = alpha
    tables["federation"]["seed"] = seed
    return tables


def measure(tables: Mapping[str, Any]) -> dict[str, float]:
    """Loss before and after, and bytes of all visits both ways."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fullfed-field-") as folder:
        run = fullfed.run(tables, Path(folder) / "run")
        return {
            "initial": run["loss"]["initial"],
            "final": run["loss"]["final"],
            "up": run.bytes_up,
            "down": run.bytes_down,
            "seconds": time.perf_counter() - began,
        }


def key(label: str, alpha: float, seed: int) -> str:
    return f"{label} | {alpha:g} | {seed}"


def wanted(labels: Sequence[str], seeds: int) -> Iterator[tuple[str, float, int]]:
    """The rows, all labels of a seed before the next seed."""
    for seed in range(seeds):
        for label in labels:
            for alpha in ALPHAS:
                yield label, alpha, seed


def run_all(labels: Sequence[str], seeds: int) -> None:
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    rows.setdefault("machine", machine("cpu"))
    for row in wanted(labels, seeds):
        if key(*row) not in rows:
            rows[key(*row)] = measure(recipe(*row))
            write_json(ROWS, rows)
            print(key(*row), json.dumps(rows[key(*row)]), flush=True)


def table(rows: Mapping[str, Any]) -> str:
    """Markdown: a line a method; its loss at each alpha, and bytes of a run at the first."""
    heads = [f"loss, alpha {alpha:g}" for alpha in ALPHAS]
    lines = [f"| method | {' | '.join(heads)} | KB up | KB down |", "|---" * 5 + "|"]
    for label in METHODS:
        cells = [_cell(_losses(rows, label, alpha)) for alpha in ALPHAS]
        sent = [
            rows[key(label, a, s)] for _, a, s in wanted([label], SEEDS) if key(label, a, s) in rows
        ]
        if sent:
            up, down = (statistics.fmean(row[way] for row in sent) / 1e3 for way in ("up", "down"))
            lines.append(f"| {label} | {' | '.join(cells)} | {up:,.0f} | {down:,.0f} |")
    return "\n".join(lines)


def _losses(rows: Mapping[str, Any], label: str, alpha: float) -> list[float]:
    keys = [key(label, alpha, seed) for seed in range(SEEDS)]
    return [rows[name]["final"] for name in keys if name in rows]


def _cell(losses: Sequence[float]) -> str:
    if not losses:
        return ""
    spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else " (one seed)"
    return f"{statistics.fmean(losses):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--only", help="labels, with semicolons between them")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    if options.command == "table":
        print(table(json.loads(ROWS.read_text())))
        return
    labels = options.only.split(";") if options.only else list(METHODS)
    if unknown := [label for label in labels if label not in METHODS]:
        parser.error(f"there is no {unknown[0]!r}; choose among {'; '.join(METHODS)}")
    torch.set_num_threads(1)
    run_all(labels, options.seeds)


if __name__ == "__main__":
    main()
