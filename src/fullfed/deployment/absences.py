"""Tells, while a run goes on, which partners are not connected, and since when."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from fullfed.deployment.folders import ServerFolder
from fullfed.deployment.members import Partner
from fullfed.deployment.processes import Print
from fullfed.deployment.server import ONLINE, RegisteredNode, partners_nodes
from fullfed.errors import UserError

_LOOK_SECONDS = 10.0


def local_time(moment: str) -> str:
    """A moment in ISO 8601 as this machine's clock shows it; nothing of nothing."""
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M:%S}" if moment else ""


class Absences:
    """What is said of partners that are not connected, once each time that it changes.

    Args:
        partners: the names of the run's.
        states: what the server knows of each partner's node, by its name; a UserError if it does
            not answer.
    """

    def __init__(
        self,
        partners: Sequence[str],
        states: Callable[[], Mapping[str, RegisteredNode]],
        say: Print,
    ) -> None:
        self._partners, self._states, self._say = partners, states, say
        self._looked = float("-inf")
        self._said: dict[str, str] = {}  # of each partner

    @staticmethod
    def of(folder: ServerFolder, partners: list[Partner], say: Print) -> Absences:
        """Those of a federation."""
        names = [partner.name for partner in partners]
        return Absences(names, lambda: partners_nodes(folder, partners), say)

    def look(self) -> None:
        """See who is there, unless that was done a moment ago, and say what is new."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        try:
            states = self._states()
        except UserError as error:
            self._tell("", str(error))
        else:
            self._said.pop("", None)
            for name in self._partners:
                self._tell(name, _absence(name, states.get(name)))
        self._looked = time.monotonic()

    def _tell(self, name: str, sentence: str) -> None:
        if sentence != self._said.get(name, ""):
            self._say(sentence or f"{name} is connected again")
        self._said[name] = sentence


def _absence(name: str, node: RegisteredNode | None) -> str:
    """What is to be said of a partner's node; empty if it is there."""
    if node is None:
        return f"{name} is not registered at the server"
    if node.state == ONLINE:
        return ""
    if not node.since:
        return f"{name} has not connected yet"
    return f"{name} is not connected, since {local_time(node.since)}"
