"""The accounts of a run: a round's line of metrics.jsonl, and the summary of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fullfed.config import Recipe
from fullfed.federation.held_out import Checked
from fullfed.federation.replica import Replica
from fullfed.federation.server import RoundResult
from fullfed.methods.checks import LEFT_OUT
from fullfed.runs.best import best_version

_SECONDS = ("train", "encode", "aggregate", "evaluate")  # what a round's time is spent on
UNMEASURED = {"visit": None, "aggregate": None}  # peaks of a round that nobody was asked in


def account_of(result: RoundResult, update_bytes: int) -> dict[str, Any]:
    """A round's line of metrics.jsonl, but for what is measured on the updated model."""
    values = result.update.values
    return {
        "round": result.update.round,
        "cohort": list(result.down),
        "aggregated": list(result.aggregated),
        "refused": [{"client": c, "reason": reason} for c, reason in result.refused],
        "limited": [
            {"client": client, "claimed": claimed, "counted": counted}
            for client, (claimed, counted) in sorted(result.limited.items())
        ],
        "left_out": values.get(LEFT_OUT, []),
        "check": None if result.checked is None else checked_as_recorded(result.checked),
        "train_loss": result.loss,
        "step": {name: v for name, v in values.items() if isinstance(v, float)},
        "bytes": {
            "up": sum(result.up.values()),
            "down": sum(result.down.values()),
            "update": update_bytes,
            "up_by_client": {str(client): n for client, n in sorted(result.up.items())},
            "down_by_client": {str(client): n for client, n in result.down.items()},
        },
        "seconds": {
            "train": result.train_seconds,
            "encode": result.encode_seconds,
            "aggregate": result.aggregate_seconds,
        },
    }


def checked_as_recorded(checked: Checked) -> dict[str, Any]:
    """What the held-out check found, as a round's line has it."""
    return {
        "gains": {str(client): gain for client, gain in sorted(checked.gains.items())},
        "left_out": sorted(checked.left_out),
        "excluded": sorted(checked.excluded),
    }


def most_of(rounds: Sequence[Mapping[str, int | None]]) -> dict[str, int | None]:
    """The largest peak of each part; None where none is known."""
    return {
        part: max((peaks[part] or 0 for peaks in rounds), default=0) or None for part in rounds[0]
    }


def summary_of(
    recipe: Recipe, base: Mapping[str, Any], records: Sequence[Mapping[str, Any]], replica: Replica
) -> dict[str, Any]:
    """First and last of every metric, and the sums of traffic and time.

    Args:
        base: base.json.
        records: the lines of metrics.jsonl.
        replica: after the last round.
    """
    spent = [record["seconds"] for record in records]
    seconds = {part: sum(of_round[part] for of_round in spent) for part in _SECONDS}
    seconds["evaluate"] += base["seconds"]["evaluate"]
    seconds["total"] = sum(of_round["elapsed"] for of_round in spent)
    return {
        "method": recipe.method.name,
        "parameters": sum(p.numel() for p in replica.model.parameters()),
        "rounds": len(records),
        "best": best_version(base, records, recipe.evaluation),
        **{
            metric: {"initial": base[metric], "final": records[-1][metric]}
            for metric in recipe.evaluation.metrics
        },
        "bytes": {way: sum(r["bytes"][way] for r in records) for way in ("up", "down")},
        "seconds": seconds,
        "peak_memory_bytes": max(record["peak_memory_bytes"] for record in records),
        "peak_memory_by_part": most_of([record["peak_memory_by_part"] for record in records]),
        "model_hash": replica.content_hash(),
    }
