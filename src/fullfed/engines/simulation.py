"""The in-process engine: every client's visit, one after another, on one replica.

Replicas are equal bit for bit, so the simulated clients share one. What passes between
server and client is still encoded messages only; bytes are counted, not estimated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fullfed.federation.inbox import Arrival
from fullfed.federation.worker import Worker


class Simulation:
    """An Engine that hands each plan to a worker in this process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def exchange(self, plans: Mapping[int, bytes]) -> Iterator[Arrival]:
        """Visit the clients in increasing order."""
        for client in sorted(plans):
            yield self._worker.visit(plans[client])
