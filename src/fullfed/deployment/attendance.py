"""Puts into the audit file which partners' nodes connect to a running server and leave it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from fullfed.deployment.audit import Audit
from fullfed.deployment.processes import Print
from fullfed.deployment.server import ONLINE, RegisteredNode
from fullfed.errors import UserError

LOOK_SECONDS = 10.0


class Attendance:
    """
    Args:
        audit: where it goes.
        states: what the server knows of each partner's node, by the partner's name; a UserError if
            it does not answer, which is said once.
    """

    def __init__(
        self, audit: Audit, states: Callable[[], Mapping[str, RegisteredNode]], say: Print
    ) -> None:
        self._audit, self._states, self._say = audit, states, say
        self._said = ""
        self._looked = float("-inf")
        self._there: dict[str, str] = {}  # since when each partner is connected

    def look(self) -> None:
        """See who has come and gone, unless that was done a moment ago.

        Raises:
            UserError: a line cannot be written.
        """
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            states, said = self._states(), ""
        except UserError as error:
            said = str(error)
        if said and said != self._said:
            self._say(said)
        self._said = said
        if said:
            return
        there = {name: node.since for name, node in states.items() if node.state == ONLINE}
        for name in sorted(self._there.keys() - there.keys()):
            since = states[name].since if name in states else ""
            self._audit.record("leave", partner=name, since=since)
        for name in sorted(there):
            if self._there.get(name) != there[name]:
                self._audit.record("join", partner=name, since=there[name])
        self._there = there
