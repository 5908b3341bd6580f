"""Visits that last longer than a round, in a simulation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Plan, fields_of
from fullfed.federation.replica import Replica
from fullfed.federation.server import Engine
from fullfed.payloads import Payload, view

_IN_MEMORY = 64 << 20  # bytes of a later round's reports; more are in a file


@dataclass
class _Waiting:
    """What arrives in a later round.

    Attributes:
        payloads: the reports, one after another.
        arrivals: without their reports, and how long each is; None where there is none.
    """

    payloads: IO[bytes]
    arrivals: list[tuple[Arrival, int | None]] = field(default_factory=list)


class UnderWay:
    """An Engine that hands a report on in the round that its plan is for.

    A visit is made when it begins, since that is when the replica is at its version. Until its
    round comes, its report waits; what a process takes with it is made again from the log
    (``runs/run.py``).

    Args:
        engine: makes the visits.
        replica: what they are made on, or what replicas elsewhere follow.
        folder: where reports wait that do not fit into memory.
    """

    def __init__(self, engine: Engine, replica: Replica, folder: Path) -> None:
        self._engine, self._replica, self._folder = engine, replica, str(folder)
        self._waiting: dict[int, _Waiting] = {}

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        """Have all visited who begin now; yield what arrives now, whenever it began."""
        round = self._replica.version
        due = {client: int(fields_of(plan, Plan)["round"]) for client, plan in plans.items()}
        for arrival in self._engine.exchange(plans, seconds):
            if due[arrival.sender] > round:
                self._put(due[arrival.sender], arrival)
                yield Arrival(arrival.sender, None, down=arrival.down, under_way=True)
            else:
                yield arrival
        yield from self._arrived(round)

    def _put(self, round: int, arrival: Arrival) -> None:
        if round not in self._waiting:
            self._waiting[round] = _Waiting(
                tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=self._folder)  # noqa: SIM115
            )
        waiting, payload = self._waiting[round], arrival.payload
        try:
            waiting.payloads.write(payload or b"")
        except OSError as error:
            raise UserError(
                f"{self._folder}: reports that are under way cannot be put here "
                f"({error.strerror}); free some space and resume."
            ) from error
        light = replace(arrival, payload=None, down=0)  # it was sent what it needed earlier
        waiting.arrivals.append((light, None if payload is None else len(payload)))

    def _arrived(self, round: int) -> Iterator[Arrival]:
        waiting = self._waiting.pop(round, None)
        if waiting is None:
            return
        with waiting.payloads as payloads:
            start = 0
            for arrival, length in waiting.arrivals:
                if length is None:
                    yield arrival
                else:
                    yield replace(arrival, payload=view(payloads, start, length))
                    start += length

    def close(self) -> None:
        """Forget what waits."""
        for waiting in self._waiting.values():
            waiting.payloads.close()
        self._waiting.clear()
