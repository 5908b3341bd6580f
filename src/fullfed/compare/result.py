"""From finished runs to the data of a comparison, comparison.json."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fullfed.compare.folder import ComparisonFolder
from fullfed.compare.plan import Contestant
from fullfed.compare.processes import Task
from fullfed.methods.catalogue import METHODS

TARGET_SHARE = 0.9  # of the way from the base model's loss to the best method's
COLUMNS = (
    "rounds_to_target",
    *("up_bytes", "down_bytes"),
    *("train_seconds", "encode_seconds", "aggregate_seconds", "total_seconds"),
    "peak_memory_bytes",
)
_PARTS = ("train", "encode", "aggregate")


def collect(
    folder: ComparisonFolder,
    contestants: Sequence[Contestant],
    seeds: Sequence[int],
    failures: Mapping[Task, str],
) -> dict[str, Any]:
    """Metrics, target and methods of comparison.json, from what the run folders hold."""
    metrics = list(contestants[0].recipe.evaluation.metrics)
    runs = {
        c.label: [
            _run(folder, c.label, seed, metrics, failures.get(Task(c.label, seed)))
            for seed in seeds
        ]
        for c in contestants
    }
    target = _target(runs, contestants[0].recipe.evaluation.every)
    return {
        "metrics": metrics,
        "target": target,
        "methods": [
            {
                "label": c.label,
                "method": c.recipe.method.name,
                "title": METHODS[c.recipe.method.name].title,
                "paper": METHODS[c.recipe.method.name].paper,
                "learning_rate": folder.learning_rate(c.label),
                "changes": dict(c.changes),
                "runs": runs[c.label],
                "columns": _columns(runs[c.label], metrics, target["value"]),
            }
            for c in contestants
        ],
    }


def _run(
    folder: ComparisonFolder, label: str, seed: int, metrics: Sequence[str], failed: str | None
) -> dict[str, Any]:
    run = folder.run(label, seed)
    base = run.base() if run.base_file.exists() else {}
    records = run.metrics()
    return {
        "seed": seed,
        "folder": str(run.path.relative_to(folder.path)),
        "failed": failed,
        "base": {metric: base[metric] for metric in metrics if base},
        "rounds": [_round(record, metrics) for record in records],
        "peak_memory_bytes": max((r["peak_memory_bytes"] for r in records), default=0),
    }


def _round(record: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "round": record["round"] + 1,
        **{metric: record.get(metric) for metric in metrics},
        "up": record["bytes"]["up"],
        "down": record["bytes"]["down"],
        "seconds": {part: record["seconds"][part] for part in _PARTS},
        "refused": len(record["refused"]),
    }


def _finished(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [run for run in runs if run["failed"] is None]


def _target(runs: Mapping[str, Sequence[Mapping[str, Any]]], every: int) -> dict[str, Any]:
    """The loss that counts as reached: most of the way to the best mean final loss."""
    done = {label: finished for label, own in runs.items() if (finished := _finished(own))}
    base = next(iter(done.values()))[0]["base"]["loss"]
    means = {
        label: statistics.fmean(run["rounds"][-1]["loss"] for run in finished)
        for label, finished in done.items()
    }
    leader = min(means, key=lambda label: means[label])
    return {
        "metric": "loss",
        "value": base - TARGET_SHARE * (base - means[leader]),
        "meaning": (
            f"{TARGET_SHARE:.0%} of the way from the base model's loss, {base:.4f}, to the lowest "
            f"mean final loss, {means[leader]:.4f} of {leader}; the loss is measured every "
            f"{f'{every} rounds' if every > 1 else 'round'}"
        ),
    }


def _columns(
    runs: Sequence[Mapping[str, Any]], metrics: Sequence[str], target: float
) -> dict[str, Any]:
    """Each column's value for every seed, and their mean and spread over the finished runs."""
    finished = {run["seed"]: _values(run, metrics, target) for run in _finished(runs)}
    columns = {}
    for name in (*metrics, *COLUMNS):
        present = [values[name] for values in finished.values()]
        known = bool(present) and None not in present
        columns[name] = {
            "values": [finished[r["seed"]][name] if r["seed"] in finished else None for r in runs],
            "mean": statistics.fmean(present) if known else None,
            "spread": statistics.stdev(present) if known and len(present) > 1 else None,
        }
    return columns


def _values(run: Mapping[str, Any], metrics: Sequence[str], target: float) -> dict[str, Any]:
    rounds = run["rounds"]
    seconds = {part: sum(r["seconds"][part] for r in rounds) for part in _PARTS}
    reached = (r["round"] for r in rounds if r["loss"] is not None and r["loss"] <= target)
    return {
        **{metric: rounds[-1][metric] for metric in metrics},
        "rounds_to_target": next(reached, None),
        "up_bytes": sum(r["up"] for r in rounds),
        "down_bytes": sum(r["down"] for r in rounds),
        **{f"{part}_seconds": value for part, value in seconds.items()},
        "total_seconds": sum(seconds.values()),
        "peak_memory_bytes": run["peak_memory_bytes"],
    }
