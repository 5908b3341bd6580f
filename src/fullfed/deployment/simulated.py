"""A node of Flower's own simulation: a process of Ray's that works for whichever client is due.

Flower keeps such processes from one message to the next, and has several at once. Each holds one
replica; as they share the server's disk, one that another was asked instead of catches up from the
run's log.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path

from fullfed.engines.flower.orders import Answer, Order, Pieces
from fullfed.federation.log import read_log
from fullfed.federation.messages import Plan, decode
from fullfed.federation.states import StatesOnDisk
from fullfed.federation.worker import Worker
from fullfed.runs.assembly import assemble, make_replica
from fullfed.runs.folder import RunFolder


@lru_cache(maxsize=1)
def node(run: Path) -> SimulatedNode:
    """This process's, with the run's model and data in memory."""
    return SimulatedNode(RunFolder(run))


class SimulatedNode:
    """Answers orders for all clients of a run.

    Args:
        folder: the run's.

    Raises:
        UserError: its recipe cannot be carried out.
    """

    def __init__(self, folder: RunFolder) -> None:
        assembly = assemble(folder.recipe())
        replica = make_replica(assembly.recipe, assembly.model, assembly.method)
        clients = {n: client.examples for n, client in enumerate(assembly.data.clients)}
        states = StatesOnDisk(folder.states_folder)
        self._worker = Worker(replica, assembly.method, clients, states)
        self._log_file = folder.log_file

    def handle(self, pieces: Pieces) -> Mapping[str, bytes]:
        """Answer one order."""
        order = Order.of(pieces)
        plan = decode(order.plan, Plan)
        if not order.handout:
            self._catch_up(order, plan.round)
        arrival = self._worker.visit(order.plan, order.handout)
        seconds = arrival.train_seconds, arrival.encode_seconds
        return Answer(plan.round, arrival.payload or b"", arrival.failure, *seconds).pieces()

    def _catch_up(self, order: Order, version: int) -> None:
        replica, known = self._worker.replica, dict(enumerate(order.updates, order.first))
        while replica.version < version:
            number = version - 1 if replica.method.cumulative else replica.version
            if number not in known:
                known = dict(enumerate(islice(read_log(self._log_file), number, None), number))
            self._worker.deliver(known[number])
