"""What a run came to: summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fullfed.config import Recipe

_SECONDS = ("train", "encode", "aggregate", "evaluate")


def summarize(
    recipe: Recipe,
    parameters: int,
    model_hash: str,
    base: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """First and last of every metric, and the sums of traffic and time.

    Args:
        parameters: of the model.
        model_hash: of the final model.
        base: measurements of the base model (base.json).
        records: one a round (metrics.jsonl).
    """
    last = records[-1]
    seconds = {part: sum(record["seconds"][part] for record in records) for part in _SECONDS}
    seconds["evaluate"] += base["seconds"]["evaluate"]
    return {
        "method": recipe.method.name,
        "parameters": parameters,
        "rounds": len(records),
        **{
            metric: {"initial": base[metric], "final": last[metric]}
            for metric in recipe.evaluation.metrics
        },
        "bytes": {way: sum(record["bytes"][way] for record in records) for way in ("up", "down")},
        "seconds": {**seconds, "total": sum(seconds.values())},
        "peak_memory_bytes": max(record["peak_memory_bytes"] for record in records),
        "model_hash": model_hash,
    }
