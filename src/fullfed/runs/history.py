"""A run's rounds in the few numbers that curves are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
