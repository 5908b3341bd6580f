"""What a comparison's table shows: its columns, and each cell as text with its unit.

The data of a comparison is the dict that ``fullfed compare`` writes as comparison.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Units = Sequence[tuple[str, float]]

BYTES: Units = (("B", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("TiB", 2**40))
SECONDS: Units = (("ms", 1e-3), ("s", 1), ("min", 60), ("h", 3600))
METRICS = {
    "loss": ("loss", "nats per token"),
    "rouge_l": ("ROUGE-L", "0 to 1"),
    "exact_match": ("exact match", "0 to 1"),
    "gsm8k": ("GSM8K", "0 to 1"),
}


@dataclass(frozen=True)
class Column:
    """One of the table's columns.

    Attributes:
        name: its key in a method's "columns".
        heading: what stands on top of it.
        number: (value, the value that decides unit and digits) to (digits, unit); the unit is
            empty where ``detail`` names it.
        detail: the unit of all its numbers, or what they count; empty where each has its own.
        missing: what stands where no seed has a value.
        rising: whether more is better.
    """

    name: str
    heading: str
    number: Callable[[float, float], tuple[str, str]]
    detail: str = ""
    missing: str = "–"
    rising: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell's text, in parts of which all but the first may be empty.

    Attributes:
        mean: "3.57".
        unit: "MiB".
        spread: "± 0.15", in the mean's unit.
        seeds: "2 of 3 seeds", where the others have no value and there is no mean.
    """

    mean: str
    unit: str = ""
    spread: str = ""
    seeds: str = ""

    def line(self) -> str:
        """The cell in one line."""
        number = " ".join(filter(None, (self.mean, self.spread, self.unit)))
        return f"{number} ({self.seeds})" if self.seeds else number

    def lines(self) -> list[str]:
        """The cell in up to three lines: the mean with its unit, the spread, the seeds."""
        return list(filter(None, (f"{self.mean} {self.unit}".rstrip(), self.spread, self.seeds)))


def table_columns(data: Mapping[str, Any]) -> list[Column]:
    """The columns of a comparison, in order; metrics are those it measured."""
    return [
        *(
            Column(name, heading, _metric, unit, rising=name != "loss")
            for name, (heading, unit) in METRICS.items()
            if name in data["metrics"]
        ),
        Column("rounds_to_target", "rounds to target", _rounds, goal(data), "not reached"),
        Column("up_bytes", "bytes up", scaled(BYTES)),
        Column("down_bytes", "bytes down", scaled(BYTES)),
        Column("train_seconds", "training", scaled(SECONDS)),
        Column("encode_seconds", "encoding", scaled(SECONDS)),
        Column("aggregate_seconds", "aggregation", scaled(SECONDS)),
        Column("total_seconds", "total time", scaled(SECONDS)),
        Column("peak_memory_bytes", "peak memory", scaled(BYTES)),
    ]


def cell(column: Column, method: Mapping[str, Any]) -> Cell:
    """A method's cell: mean and spread over the runs that finished."""
    entry = method["columns"][column.name]
    mean, spread = entry["mean"], entry["spread"]
    if mean is not None:
        digits, unit = column.number(mean, mean)
        return Cell(digits, unit, "" if spread is None else f"± {column.number(spread, mean)[0]}")
    runs = zip(method["runs"], entry["values"], strict=True)
    values = [value for run, value in runs if run["failed"] is None]
    present = sum(value is not None for value in values)
    if present == 0:
        return Cell(column.missing if values else "–")
    # No mean where a seed has no value: each seed for itself.
    each = ", ".join("–" if value is None else column.number(value, value)[0] for value in values)
    return Cell(each, seeds=f"{present} of {len(values)} seeds")


def scaled(units: Units) -> Callable[[float, float], tuple[str, str]]:
    """Numbers in the largest of ``units`` (ascending) that fits, three digits of the mean."""

    def number(value: float, mean: float) -> tuple[str, str]:
        if mean == 0:
            return "0", units[0][0]
        name, size = next((u for u in reversed(units) if mean >= u[1]), units[0])
        digits = 2 - math.floor(math.log10(mean / size))
        return f"{value / size:,.{max(digits, 0)}f}", name

    return number


def goal(data: Mapping[str, Any]) -> str:
    """The target that rounds are counted to: "loss ≤ 3.6"."""
    target = data["target"]
    better = "≤" if target["metric"] == "loss" else "≥"
    return f"{METRICS[target['metric']][0]} {better} {target['value']:.4g}"


def failed(method: Mapping[str, Any]) -> str:
    """How many of a method's runs failed, "1 of 3 failed"; empty where none did."""
    number = sum(run["failed"] is not None for run in method["runs"])
    return f"{number} of {len(method['runs'])} failed" if number else ""


def failures(data: Mapping[str, Any]) -> list[str]:
    """A line for every run that failed: method, seed and reason."""
    return [
        f"{method['label']}, seed {run['seed']}, failed: {run['failed']}"
        for method in data["methods"]
        for run in method["runs"]
        if run["failed"] is not None
    ]


def legend(data: Mapping[str, Any]) -> list[str]:
    """What the numbers of the table are, in a few lines."""
    seeds = max(len(method["runs"]) for method in data["methods"])
    over = f"Mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else "One seed"
    finished = ", of the runs that finished" if failures(data) else ""
    return [
        f"{over}{finished}. Target: {goal(data)}, {data['target']['meaning']}.",
        "Bytes and seconds are of all clients and rounds together; bytes down include what absent "
        "clients catch up on; total time is training, encoding and aggregation, evaluation apart.",
    ]


def _metric(value: float, mean: float) -> tuple[str, str]:
    return f"{value:.3f}", ""


def _rounds(value: float, mean: float) -> tuple[str, str]:
    return f"{value:.1f}".removesuffix(".0"), ""
