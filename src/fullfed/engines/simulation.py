"""The in-process engine: every client's visit, one after another, on one replica.

Replicas are equal bit for bit, so the simulated clients share one. What passes between
server and client is still encoded messages only; bytes are counted, not estimated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from fullfed.federation.inbox import Arrival
from fullfed.federation.traffic import Traffic
from fullfed.federation.worker import Worker
from fullfed.randomness import Purpose, Stream, uniforms


class Simulation:
    """An Engine that hands each plan to a worker in this process.

    Args:
        worker: holds the clients' data.
        failures: the share of visits that end without a report, although the plan was fetched.
        seed: with round and client it decides which.
        traffic: knows what each client would hold in a real federation. Without it every client
            counts as up to date.
    """

    def __init__(
        self,
        worker: Worker,
        failures: float = 0.0,
        seed: int = 0,
        traffic: Traffic | None = None,
    ) -> None:
        self._worker = worker
        self._failures = failures
        self._seed = seed
        self._traffic = traffic

    def exchange(self, plans: Mapping[int, bytes]) -> Iterator[Arrival]:
        """Visit the clients in increasing order."""
        for client in sorted(plans):
            yield self._visit(client, plans[client])

    def _visit(self, client: int, plan: bytes) -> Arrival:
        submodel = self._worker.submodel(plan)
        down = len(plan) + len(submodel) + self._lacking(client, bool(submodel))
        if self._fails(client):
            return Arrival(client, None, failure="a failure that the recipe simulates", down=down)
        return replace(self._worker.visit(plan, submodel), down=down)

    def _lacking(self, client: int, by_submodel: bool) -> int:
        """Bytes of what a client is sent besides plan and submodel; it has that from now on."""
        if self._traffic is None:
            return 0
        first = self._traffic.is_new(client)
        missed = self._traffic.catch_up(client, self._worker.replica.version)
        if by_submodel:
            return self._worker.static_bytes if first else 0
        return missed

    def _fails(self, client: int) -> bool:
        round = self._worker.replica.version
        stream = Stream(self._seed, Purpose.FAILURES, round, client)
        return bool(uniforms(stream, 1)[0] < self._failures)
