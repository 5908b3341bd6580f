"""A comparison that nobody measured, in the form of comparison.json."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

METHODS = {  # label: (title, paper, final loss, bytes up a round, bytes down, seconds a round)
    "fedavg": ("FedAvg", "McMahan et al. 2017, arXiv 1602.05629", 3.45, 10.4e6, 9.5e6, 10.2),
    "ferret": ("Ferret", "Shu et al. 2024, arXiv 2409.06277", 3.74, 1.05e5, 5e6, 11.3),
    "fedkseed": ("FedKSeed", "Qin et al. 2024, arXiv 2312.06353", 5.35, 1.7e4, 1.8e4, 21.0),
    "fedkseed-pro": ("FedKSeed-Pro", "Qin et al. 2024, arXiv 2312.06353", 5.2, 1.7e4, 2.1e4, 21.5),
    "fedzo": ("FedZO", "Fang et al. 2022, arXiv 2201.09531", 6.1, 10.4e6, 9.5e6, 24.0),
    "fedit": ("FedIT", "Zhang et al. 2024, arXiv 2305.05644", 4.3, 2.2e5, 2.1e5, 8.0),
}
BASE = {"loss": 6.566, "rouge_l": 0.021}
TARGET = 4.5


def comparison(
    methods: int = 6, seeds: int = 3, rounds: int = 24, every: int = 2
) -> dict[str, Any]:
    """Curves that fall as training losses do, evaluated every ``every`` rounds."""
    chosen = [_method(label, seeds, rounds, every) for label in list(METHODS)[:methods]]
    trials = [{"learning_rate": 0.5 * 4**k, "loss": 6.5 - 0.2 * k, "reason": None} for k in (-1, 0)]
    wild = {"learning_rate": 2.0, "loss": None, "reason": "the loss is not finite in round 2"}
    return {
        "title": "natural-instructions, 170 clients",
        "command": "fullfed compare recipes/natural-instructions.toml --methods "
        f"{','.join(m['label'] for m in chosen)} --seeds {seeds} --out runs/compare",
        "created": "2026-11-21T13:05:00+00:00",
        "recipe": {
            "model": {"path": "models/stories260k", "dtype": "float32", "device": "auto"},
            "data": {"train": "data/natural-instructions", "partition": "task"},
            "federation": {"rounds": rounds, "clients_per_round": 10, "seed": 0},
            "local": {"optimizer": "sgd", "learning_rate": 0.5, "steps": 10, "batch_size": 4},
            "method": {"name": "fedavg"},
            "evaluation": {"every": every, "metrics": ["loss", "rouge_l"]},
        },
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.17.0",
            "fullfed": "0.1.0",
            "processor": "an invented processor",
            "threads": 1,
            "jobs": 2,
        },
        "metrics": ["loss", "rouge_l"],
        "target": {
            "metric": "loss",
            "value": TARGET,
            "meaning": "half of the way from the base model's loss to the best method's",
        },
        "search": {
            "trials": 3,
            "rounds": 3,
            "validation_samples": 100,
            "methods": {m["label"]: [*trials, wild] for m in chosen},
        },
        "methods": chosen,
    }


def fail(data: dict[str, Any], label: str, seed: int, reason: str, after: int) -> None:
    """Let a run stop after ``after`` rounds; the means become those of the others."""
    method = next(m for m in data["methods"] if m["label"] == label)
    run = method["runs"][seed]
    run["failed"], run["rounds"] = reason, run["rounds"][:after]
    method["columns"] = columns(method["runs"], data["metrics"])


def columns(runs: list[dict[str, Any]], metrics: list[str]) -> dict[str, Any]:
    """The table's numbers of a method."""
    rows = [_row(run, metrics) for run in runs]
    finished = [n for n, run in enumerate(runs) if not run["failed"]]
    return {name: _statistics([row[name] for row in rows], finished) for name in rows[0]}


def _method(label: str, seeds: int, rounds: int, every: int) -> dict[str, Any]:
    title, paper, *numbers = METHODS[label]
    runs = [_run(label, seed, rounds, every, *numbers) for seed in range(seeds)]
    return {
        "label": label,
        "method": label.removesuffix("-pro"),
        "title": title,
        "paper": paper,
        "learning_rate": 0.5,
        "changes": {"method.name": label, "local.learning_rate": 0.5},
        "runs": runs,
        "columns": columns(runs, ["loss", "rouge_l"]),
    }


def _run(
    label: str, seed: int, rounds: int, every: int, last: float, up: float, down: float, s: float
) -> dict[str, Any]:
    draw = random.Random(f"{label} {seed}")
    end = last + draw.gauss(0, 0.07)
    records = []
    for number in range(1, rounds + 1):
        gone = 1 - math.exp(-5 * number / rounds)
        due = number % every == 0 or number == rounds
        loss = BASE["loss"] + (end - BASE["loss"]) * gone + draw.gauss(0, 0.02)
        records.append(
            {
                "round": number,
                "loss": loss if due else None,
                "rouge_l": max(0.0, 0.35 - 0.05 * loss) if due else None,
                "up": int(up),
                "down": 0 if number == 1 else int(down * draw.uniform(0.9, 1.1)),
                "seconds": {
                    "train": s * draw.uniform(0.9, 1.1),
                    "encode": s / 100,
                    "aggregate": s / 50,
                },
                "refused": 0,
            }
        )
    return {
        "seed": seed,
        "folder": f"runs/{label}/seed-{seed}",
        "failed": None,
        "base": dict(BASE),
        "rounds": records,
        "peak_memory_bytes": int(700e6 + 1e7 * seed),
    }


def _row(run: dict[str, Any], metrics: list[str]) -> dict[str, float | None]:
    names = [*metrics, "rounds_to_target", "up_bytes", "down_bytes", "train_seconds"]
    names += ["encode_seconds", "aggregate_seconds", "total_seconds", "peak_memory_bytes"]
    if run["failed"]:
        return dict.fromkeys(names)
    records = run["rounds"]
    parts = {
        f"{part}_seconds": sum(record["seconds"][part] for record in records)
        for part in ("train", "encode", "aggregate")
    }
    return {
        **{metric: records[-1][metric] for metric in metrics},
        "rounds_to_target": next(
            (r["round"] for r in records if r["loss"] is not None and r["loss"] <= TARGET), None
        ),
        "up_bytes": sum(record["up"] for record in records),
        "down_bytes": sum(record["down"] for record in records),
        **parts,
        "total_seconds": sum(parts.values()),
        "peak_memory_bytes": run["peak_memory_bytes"],
    }


def _statistics(values: list[float | None], finished: list[int]) -> dict[str, Any]:
    known = [value for n in finished if (value := values[n]) is not None]
    whole = len(known) == len(finished) > 0
    return {
        "values": values,
        "mean": statistics.fmean(known) if whole else None,
        "spread": statistics.stdev(known) if whole and len(known) > 1 else None,
    }
