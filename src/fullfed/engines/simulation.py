"""The in-process engine: every client's visit, one after another, on one replica.

Replicas are equal bit for bit, so the simulated clients share one. What passes between
server and client is still encoded messages only; bytes are counted, not estimated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fullfed.config import Recipe
from fullfed.federation.client import Worker
from fullfed.federation.inbox import Arrival
from fullfed.federation.log import Log
from fullfed.federation.server import Traffic
from fullfed.payloads import Payload
from fullfed.randomness import Purpose, Stream, uniforms


@dataclass
class Simulation:
    """An Engine that hands each plan to a worker in this process.

    Args:
        worker: holds the clients' data.
        failures: the share of visits that end without a report, although the plan was fetched.
        seed: with round and client it decides which.
        traffic: knows what each client would hold in a real federation. Without it every client
            counts as up to date.
    """

    worker: Worker
    failures: float = 0.0
    seed: int = 0
    traffic: Traffic | None = None

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        """Visit the clients in increasing order."""
        for client in sorted(plans):
            plan = plans[client]
            submodel = self.worker.submodel(plan)
            suffered = self.suffered(client, plan, submodel)
            if suffered.failure:
                yield suffered
            else:
                yield replace(self.worker.visit(plan, submodel), down=suffered.down)

    def suffered(self, client: int, plan: Payload, submodel: Payload) -> Arrival:
        """What becomes of a plan before any work on it: the bytes that the client is sent are
        counted, and where the recipe lets the visit fail, it has."""
        down = len(plan) + len(submodel) + self._lacking(client, bool(submodel))
        stream = Stream(self.seed, Purpose.FAILURES, self.worker.replica.version, client)
        fails = uniforms(stream, 1)[0] < self.failures
        failure = "a failure that the recipe simulates" if fails else ""
        return Arrival(client, None, failure=failure, down=down, drawn=bool(fails))

    def _lacking(self, client: int, by_submodel: bool) -> int:
        """Bytes of what a client is sent besides plan and submodel; it has that from now on."""
        if self.traffic is None:
            return 0
        first = self.traffic.is_new(client)
        missed = self.traffic.catch_up(client, self.worker.replica.version)
        once = len(self.worker.scales) if first else 0
        if by_submodel:
            return once + (self.worker.static_bytes if first else 0)
        return once + missed


def simulate(recipe: Recipe, worker: Worker, log: Log, traffic: Traffic) -> Simulation:
    """The simulation that a recipe asks for; see runs.run.Connect."""
    return Simulation(worker, recipe.simulation.failures, recipe.federation.seed, traffic)
