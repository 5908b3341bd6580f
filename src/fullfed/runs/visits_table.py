"""A table of a round's visits, for a terminal: whose, on how many samples, with what loss."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from rich.console import RenderableType
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from fullfed.errors import MessageError
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Report, fields_of
from fullfed.units import bytes_text, seconds_text

_SHOWN = 8  # visits, the newest


class VisitsTable:
    """The newest visits of the round."""

    def __init__(self) -> None:
        self._rows: deque[tuple[str, ...]] = deque(maxlen=_SHOWN)

    def clear(self) -> None:
        """A new round begins."""
        self._rows.clear()

    def add(self, name: str, arrival: Arrival) -> None:
        """A client's answer has arrived. What it says of itself is shown as it is; the round judges
        it later."""
        if arrival.payload is None:
            self._rows.append((name, "", "", f"failed: {arrival.failure}", ""))
            return
        try:
            said = fields_of(arrival.payload, Report)
        except MessageError:
            said = {}
        spent = seconds_text(arrival.train_seconds + arrival.encode_seconds)
        self._rows.append(
            (
                name,
                _number(said.get("samples"), ",.0f"),
                _number(said.get("loss"), ".4f"),
                bytes_text(len(arrival.payload)),
                spent,
            )
        )

    def __rich__(self) -> RenderableType:
        if not self._rows:
            return ""
        table = Table(box=None, padding=(0, 2), header_style="dim")
        table.add_column("client", overflow="ellipsis", max_width=32)
        for name in ("samples", "train loss", "sent", "took"):
            table.add_column(name, justify="right", overflow="ellipsis", max_width=40)
        for row in self._rows:
            table.add_row(*map(Text, row))  # what a client says is no markup
        return table


class RunProgress(Progress):
    """A bar with a table of visits above it.

    Attributes:
        visits: the table.
    """

    def __init__(self, *columns: Any, **options: Any) -> None:
        self.visits = VisitsTable()
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn."""
        yield self.visits
        yield from super().get_renderables()


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "?"
