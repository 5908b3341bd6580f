"""A node's part in a run: with a replica that follows the log, or without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.deployment.node_state import NodeState
from fullfed.engines.flower.orders import Order
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import MessageError
from fullfed.federation.method import Method
from fullfed.federation.replica import Replica
from fullfed.federation.worker import Guest, Worker

Clients = Mapping[int, Sequence[TokenizedExample]]


class Member(Protocol):
    @property
    def version(self) -> int:
        """The model version that the node is at."""

    def follow(self, order: Order, version: int) -> None:
        """Go towards ``version`` with what the order brings; keep it on disk.

        Raises:
            MessageError: what the order brings is no use.
        """

    def visit(self, order: Order) -> Arrival:
        """Carry out the order's plan, which is of the version that the node is at."""


class Holder:
    """Holds a replica, which it brings up to date by updates.

    Args:
        replica: at version 0; taken to where the disk says it was.
        state: the node's, of the run.
        clients: the node's data, by the number of the client that it is.
        snapshot_every: rounds between two snapshots on the disk.

    Raises:
        UserError: the state on disk was damaged.
    """

    def __init__(
        self,
        replica: Replica,
        state: NodeState,
        clients: Clients,
        snapshot_every: int,
    ) -> None:
        self._worker = Worker(replica, replica.method, clients, state.states)
        self._state = state
        self._every = snapshot_every
        state.restore(self._worker)

    @property
    def version(self) -> int:
        return self._worker.replica.version

    def follow(self, order: Order, version: int) -> None:
        worker, state, replica = self._worker, self._state, self._worker.replica
        if order.snapshot and replica.version < version:
            state.receive_snapshot(worker, order.snapshot, order.last)
        for number, payload in enumerate(order.updates, start=order.first):
            if number < replica.version:
                continue
            if number > replica.version and not replica.method.cumulative:
                return
            worker.deliver(payload)
            state.append(payload)
            if replica.version % self._every == 0:
                state.take_snapshot(worker, payload)

    def visit(self, order: Order) -> Arrival:
        return self._worker.visit(order.plan)


class WithoutReplica:
    """Trains on the handout that comes with every order.

    Args:
        blank: the model without weights.
        method: how to train and report.
        state: the node's, of the run; has the equipment.
        clients: as for ``Holder``.
        device: to train on.

    Raises:
        MessageError: the equipment is malformed.
    """

    def __init__(
        self,
        blank: PreTrainedModel,
        method: Method,
        state: NodeState,
        clients: Clients,
        device: torch.device,
    ) -> None:
        equipment = state.equipment_file.read_bytes()
        self._guest = Guest(blank, method, equipment, clients, state.states, device)
        self._states = state.states
        self.version = 0

    def follow(self, order: Order, version: int) -> None:
        """It sees no updates, so the order says of which visit there is something to keep."""
        for round in range(order.merged + 1, version):
            self._states.settle(round, [])
        self.version = version

    def visit(self, order: Order) -> Arrival:
        if not order.handout:
            raise MessageError("the order brings no handout for a node without a replica")
        return self._guest.visit(order.plan, order.handout)
