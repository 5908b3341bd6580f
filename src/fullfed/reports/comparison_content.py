"""What a report of a comparison says, whatever its form: columns, cells, notes, recipe.

The data of a comparison is the dict that ``fullfed compare`` writes as comparison.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import tomli_w

from fullfed.evaluation.metrics import METRICS
from fullfed.units import BYTES, SECONDS, scaled

Number = Callable[[float, float], tuple[str, str]]


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
        more_is_better: whether a higher number is the better one.
    """

    name: str
    heading: str
    number: Number
    detail: str = ""
    missing: str = "–"
    more_is_better: bool = False


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
            Column(m.name, m.heading, _metric, m.unit, more_is_better=m.more_is_better)
            for m in METRICS.values()
            if m.name in data["metrics"]
        ),
        Column("rounds_to_target", "rounds to target", _rounds, goal(data), "not reached"),
        Column("up_bytes", "bytes up", _bytes),
        Column("down_bytes", "bytes down", _bytes),
        Column("train_seconds", "training", _seconds),
        Column("encode_seconds", "encoding", _seconds),
        Column("aggregate_seconds", "aggregation", _seconds),
        Column("total_seconds", "total time", _seconds),
        Column("peak_memory_bytes", "peak memory", _bytes),
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


def goal(data: Mapping[str, Any]) -> str:
    """The target that rounds are counted to: "loss ≤ 3.6"."""
    target = data["target"]
    metric = METRICS[target["metric"]]
    return f"{metric.heading} {'≥' if metric.more_is_better else '≤'} {target['value']:.4g}"


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


def changes(method: Mapping[str, Any]) -> list[str]:
    """What a method's table under ``compare`` says, as lines of TOML with dotted keys."""
    return [f"{key} = {_toml(value)}" for key, value in method["changes"].items()]


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The recipe as TOML."""
    return tomli_w.dumps(recipe)


def _toml(value: Any) -> str:
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip()


def _metric(value: float, mean: float) -> tuple[str, str]:
    return f"{value:.3f}", ""


def _rounds(value: float, mean: float) -> tuple[str, str]:
    return f"{value:.1f}".removesuffix(".0"), ""


_bytes: Number = partial(scaled, BYTES)
_seconds: Number = partial(scaled, SECONDS)
