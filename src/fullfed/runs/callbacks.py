"""Callbacks: how anybody is told of a run while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fullfed.federation.inbox import Arrival
from fullfed.runs.assembly import Assembly


class Callback:
    """Is called as a run goes on; a subclass overrides the hooks that it needs.

    What a hook raises ends the run, which can be resumed.
    """

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        """The run starts, or goes on, at model version ``version``."""

    def on_visit_end(self, round: int, arrival: Arrival) -> None:
        """A client's answer has arrived."""

    def on_round_end(self, record: dict[str, Any]) -> None:
        """A round is over, and ``record`` is its line of metrics.jsonl."""

    def on_run_end(self, summary: dict[str, Any]) -> None:
        """The run is over, and ``summary`` is what summary.json holds."""


class Callbacks(Callback):
    """Several callbacks as one, called in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = tuple(callbacks)

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        for callback in self._callbacks:
            callback.on_run_begin(assembly, version)

    def on_visit_end(self, round: int, arrival: Arrival) -> None:
        for callback in self._callbacks:
            callback.on_visit_end(round, arrival)

    def on_round_end(self, record: dict[str, Any]) -> None:
        for callback in self._callbacks:
            callback.on_round_end(record)

    def on_run_end(self, summary: dict[str, Any]) -> None:
        for callback in self._callbacks:
            callback.on_run_end(summary)
