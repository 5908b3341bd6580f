"""Which round's model was best by a metric, and whether a run has gone on for long enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fullfed.config import EvaluationTable
from fullfed.errors import UserError
from fullfed.evaluation.metrics import METRICS
from fullfed.runs.folder import RunFolder


def best_version(
    base: Mapping[str, Any], records: Sequence[Mapping[str, Any]], table: EvaluationTable
) -> int | None:
    """The model version with the best value of ``table.best_by``; the earliest of several.

    Args:
        base, records: what base.json and metrics.jsonl hold.

    Returns:
        0 for the base model; None where nothing was measured.
    """
    measured = _measured(base, records, table)
    if not measured:
        return None
    sign = -1.0 if METRICS[table.decides].more_is_better else 1.0
    return min(measured, key=lambda version: (sign * measured[version], version))


def version_of(folder: RunFolder, round: int | Literal["best"] | None) -> int | None:
    """The model version that is meant: after so many rounds, the best, or the newest for None.

    Raises:
        UserError: the run has no such version, or has measured nothing.
    """
    if round is None:
        return None
    records = folder.metrics()
    if round != "best":
        if not 0 <= round <= len(records):
            raise UserError(
                f"{folder.path}: the run has {len(records)} rounds, and no model after {round}; "
                f"name a round from 0 to {len(records)}."
            )
        return round
    best = best_version(folder.base(), records, folder.recipe().evaluation)
    if best is None:
        raise UserError(f"{folder.path}: the run has measured nothing; name a round by its number.")
    return best


def measurement(record: Mapping[str, Any], table: EvaluationTable) -> dict[str, Any]:
    """What the functions here ask of a round's line, which is as long as its cohort."""
    return {"round": record["round"], table.decides: record.get(table.decides)}


def is_over(
    base: Mapping[str, Any], records: Sequence[Mapping[str, Any]], table: EvaluationTable
) -> bool:
    """Whether the newest ``table.patience`` measurements have brought nothing better."""
    best = best_version(base, records, table)
    if table.patience is None or best is None:
        return False
    later = [version for version in _measured(base, records, table) if version > best]
    return len(later) >= table.patience


def _measured(
    base: Mapping[str, Any], records: Sequence[Mapping[str, Any]], table: EvaluationTable
) -> dict[int, float]:
    """The values of the metric that decides, by model version."""
    values = {0: base.get(table.decides)}
    values |= {record["round"] + 1: record.get(table.decides) for record in records}
    return {version: value for version, value in values.items() if value is not None}
