"""The in-process engine: every client's visit, one after another, on one replica.

Replicas are equal bit for bit, so the simulated clients share one. What passes between
server and client is still encoded messages only; bytes are counted, not estimated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fullfed.federation.inbox import Arrival
from fullfed.federation.worker import Worker
from fullfed.randomness import Purpose, Stream, uniforms


class Simulation:
    """An Engine that hands each plan to a worker in this process.

    Args:
        worker: holds the clients' data.
        failures: the share of visits that end without a report, although the plan was fetched.
        seed: with round and client it decides which.
    """

    def __init__(self, worker: Worker, failures: float = 0.0, seed: int = 0) -> None:
        self._worker = worker
        self._failures = failures
        self._seed = seed

    def exchange(self, plans: Mapping[int, bytes]) -> Iterator[Arrival]:
        """Visit the clients in increasing order."""
        for client in sorted(plans):
            if self._fails(client):
                yield Arrival(client, None, failure="a failure that the recipe simulates")
            else:
                yield self._worker.visit(plans[client])

    def _fails(self, client: int) -> bool:
        round = self._worker.replica.version
        stream = Stream(self._seed, Purpose.FAILURES, round, client)
        return bool(uniforms(stream, 1)[0] < self._failures)
