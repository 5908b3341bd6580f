"""TensorBoard events of a run (extra ``tracking``)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fullfed.federation.inbox import Arrival
from fullfed.runs.assembly import Assembly


def can_track() -> bool:
    """Whether the extra ``tracking`` is installed."""
    return find_spec("tensorboard") is not None


class TensorBoard:
    """A Watcher that writes every round's numbers as events.

    Args:
        folder: where the event file goes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def begin(self, assembly: Assembly, version: int) -> None:
        # Only now is it certain that there is a run whose folder this belongs into.
        from tensorboard.summary import Writer

        self._writer = Writer(str(self._folder))

    def visit(self, round: int, arrival: Arrival) -> None:
        pass

    def round(self, record: dict[str, Any]) -> None:
        step = record["round"] + 1
        for name, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(name, value, step)
        for way in ("up", "down"):
            self._writer.add_scalar(f"bytes/{way}", record["bytes"][way], step)
        for part, seconds in record["seconds"].items():
            self._writer.add_scalar(f"seconds/{part}", seconds, step)
        self._writer.flush()

    def end(self, summary: dict[str, Any]) -> None:
        self._writer.close()
