"""A run's rounds in few numbers: those of curves, and each metric before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fullfed.evaluation.metrics import METRICS

PARTS = ("train", "encode", "aggregate")  # of a round's time; evaluation is apart


def base_numbers(base: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    """What was measured of the base model; ``base``: base.json."""
    return {metric: base[metric] for metric in metrics if base.get(metric) is not None}


def round_numbers(record: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """A round, counted from 1: metrics (None where not measured), bytes both ways, seconds of each
    part; ``record``: a line of metrics.jsonl."""
    return {
        "round": record["round"] + 1,
        **{metric: record.get(metric) for metric in metrics},
        "up": record["bytes"]["up"],
        "down": record["bytes"]["down"],
        "seconds": {part: record["seconds"][part] for part in PARTS},
        "refused": len(record["refused"]),
    }


@dataclass(frozen=True)
class Result:
    """A metric's values.

    Attributes:
        metric: its name.
        base: of the base model; None where it was no finite number.
        last, best: of the measured rounds, with the round of each, counted from 1; None where there
            is none.
    """

    metric: str
    base: float | None
    last: tuple[float, int] | None
    best: tuple[float, int] | None


def results(
    base: Mapping[str, Any], records: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> list[Result]:
    """Each metric before, at last and at its best; ``records``: the lines of metrics.jsonl."""
    found = []
    for name in metrics:
        values = [(r[name], r["round"] + 1) for r in records if r.get(name) is not None]
        better = max if METRICS[name].more_is_better else min
        best = better(values, key=lambda value: value[0], default=None)
        found.append(Result(name, base.get(name), values[-1] if values else None, best))
    return found
