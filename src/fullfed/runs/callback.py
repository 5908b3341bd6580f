"""What is told of a run as it goes on."""

from __future__ import annotations

from typing import Any

from fullfed.federation.inbox import Arrival
from fullfed.headway import Headway
from fullfed.runs.assembly import Assembly


class Callback:
    """Is called as a run goes on; a subclass overrides the hooks that it needs.

    What a hook raises ends the run, which can be resumed.

    Examples:
        >>> class Print(fullfed.Callback):
        ...     def on_round_end(self, record):
        ...         print("round", record["round"] + 1, "sent", record["bytes"]["up"], "bytes")
        >>> run = fullfed.run("first.toml", callbacks=[Print()])
        round 1 sent 8148 bytes
        round 2 sent 8148 bytes
    """

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        """The run starts, or goes on, at model version ``version``; nothing is measured yet."""

    def on_notice(self, text: str) -> None:
        """Something that a person should know of the run, in one sentence."""

    def on_round_begin(self, round: int) -> None:
        """The cohort is about to be asked."""

    def on_headway(self, version: int, headway: Headway) -> None:
        """Work on model version ``version`` has come a step further.

        It is called very often: a hook that takes long, or reads a loss each time, slows the run.
        """

    def on_visit_end(self, round: int, arrival: Arrival) -> None:
        """A client's answer has arrived."""

    def on_round_end(self, record: dict[str, Any]) -> None:
        """A round is over, and ``record`` is its line of metrics.jsonl."""

    def on_run_end(self, summary: dict[str, Any]) -> None:
        """The run is over, and ``summary`` is what summary.json holds."""
