"""The engine that carries plans and reports over Flower's Grid.

Orders are pushed to the SuperLink, answers pulled one at a time as they come. A node that went
away and came back within the round is sent its order again: the worker remembers its answer, so
nothing is done twice. What an answer may contain is the inbox's business; here it only has to
come from the node that was asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import Message
from flwr.serverapp import Grid

from fullfed.engines.flower.orders import Answer, Order
from fullfed.engines.flower.records import content_of, pieces_of
from fullfed.federation.inbox import Arrival
from fullfed.federation.log import Log
from fullfed.federation.messages import MessageError, encode
from fullfed.federation.recipe import DeploymentTable
from fullfed.federation.traffic import Traffic
from fullfed.federation.worker import Worker

_PAUSE = 0.2  # seconds between two looks into the SuperLink
_NODES_PAUSE = 2.0  # seconds between two looks at who is there
_TRIES = 3  # how often a client's order is sent again after an error of Flower's


@dataclass(frozen=True)
class Membership:
    """Who takes part in a run.

    Attributes:
        run: names the run; 16 hexadecimal digits.
        clients: each client's public key, as the SuperLink knows it, in the clients' order.
        terms: the run's terms, encoded.
    """

    run: str
    clients: Sequence[bytes]
    terms: bytes


@dataclass
class _Visit:
    """A client's part in a round.

    Attributes:
        plan: encoded.
        node: the Flower node it was sent to, ...
        since: ... and since when that node has been there.
        messages: ids of the orders that have not been answered.
        tries: after errors of Flower's.
    """

    plan: bytes
    node: int = 0
    since: str = ""
    messages: set[str] | None = None
    tries: int = 0


class FlowerEngine:
    """An Engine whose clients are Flower nodes.

    Args:
        grid: Flower's.
        membership: which node is which client.
        server: the server's own replica and newest update.
        log: the run's.
        traffic: knows which version each node holds, and is told what nodes say.
        table: how long a round waits, and for how many.
    """

    def __init__(
        self,
        grid: Grid,
        membership: Membership,
        server: Worker,
        log: Log,
        traffic: Traffic,
        table: DeploymentTable,
    ) -> None:
        self._grid = grid
        self._membership = membership
        self._server = server
        self._log = log
        self._traffic = traffic
        self._table = table
        self._told: set[int] = set()  # clients that know the terms

    def exchange(self, plans: Mapping[int, bytes]) -> Iterator[Arrival]:
        """Send every client its plan; yield reports and failures as they come.

        Ends when every client has answered, at the deadline, or when a quorum has reported and
        those that have not are not connected.
        """
        visits = {client: _Visit(plan) for client, plan in plans.items()}
        quorum, reports = self._table.quorum * len(plans), 0
        ends = time.monotonic() + self._table.deadline_seconds
        looked = float("-inf")
        while visits and time.monotonic() < ends:
            if time.monotonic() - looked > _NODES_PAUSE:
                present = self._present()
                self._send_to_arrived(visits, present, ends)
                looked = time.monotonic()
                if reports >= quorum and not any(client in present for client in visits):
                    break
            for client in sorted(visits):
                arrival = self._receive(client, visits[client], ends)
                if arrival is not None:
                    del visits[client]
                    reports += arrival.payload is not None
                    yield arrival
            time.sleep(_PAUSE)
        for client, visit in sorted(visits.items()):
            failure = "no report before the round ended" if visit.node else "the node was not there"
            yield Arrival(client, None, failure=failure)

    def _present(self) -> dict[int, tuple[int, str]]:
        """Each connected client's (Flower node, since when it has been connected)."""
        nodes = {node.public_key: node for node in self._grid.get_nodes()}
        return {
            client: (nodes[key].node_id, nodes[key].last_activated_at)
            for client, key in enumerate(self._membership.clients)
            if key in nodes
        }

    def _send_to_arrived(
        self, visits: Mapping[int, _Visit], present: Mapping[int, tuple[int, str]], ends: float
    ) -> None:
        for client, visit in sorted(visits.items()):
            if client in present and present[client] != (visit.node, visit.since):
                visit.node, visit.since = present[client]
                self._send(client, visit, ends)

    def _send(self, client: int, visit: _Visit, ends: float) -> None:
        message = Message(
            content_of(self._order(client, visit.plan).pieces()),
            dst_node_id=visit.node,
            message_type="train",
            ttl=max(ends - time.monotonic(), 1.0),
            group_id=str(self._server.replica.version),
        )
        visit.messages = {*(visit.messages or ()), *self._grid.push_messages([message])}

    def _order(self, client: int, plan: bytes) -> Order:
        """The plan, with what the client lacks for it as far as is known."""
        run, version = self._membership.run, self._server.replica.version
        order = Order(run, plan)
        if client not in self._told:
            order = replace(order, terms=self._membership.terms)
        if self._traffic.by_snapshot(client, version, self._log.sizes):
            assert self._server.last is not None  # there are updates
            last = encode(replace(self._server.last, tensors={}))
            return replace(order, snapshot=self._server.replica.snapshot(), last=last)
        missed = self._traffic.missed(client, version)
        updates = tuple(self._log.read(number) for number in missed)
        return replace(order, updates=updates, first=missed.start)

    def _receive(self, client: int, visit: _Visit, ends: float) -> Arrival | None:
        """What a client came to, or None as long as it has not come to anything."""
        for message in list(visit.messages or ()):
            for reply in self._grid.pull_messages([message]):
                assert visit.messages is not None
                visit.messages.discard(message)
                if reply.has_error():
                    arrival = self._after_error(client, visit, reply, ends)
                elif reply.metadata.src_node_id != visit.node:
                    continue  # somebody else's: as if it had not come
                else:
                    arrival = self._after_answer(client, visit, reply, ends)
                if arrival is not None:
                    return arrival
        return None

    def _after_error(
        self, client: int, visit: _Visit, reply: Message, ends: float
    ) -> Arrival | None:
        visit.tries += 1
        if visit.tries >= _TRIES:
            return Arrival(client, None, failure=f"Flower's error {reply.error.code} on the node")
        self._send(client, visit, ends)
        return None

    def _after_answer(
        self, client: int, visit: _Visit, reply: Message, ends: float
    ) -> Arrival | None:
        try:
            answer = Answer.of(pieces_of(reply.content))
        except MessageError as error:
            return Arrival(client, None, failure=str(error))
        if not answer.lacks:
            self._told.add(client)
            return Arrival(
                client,
                answer.report or None,
                answer.failure,
                answer.train_seconds,
                answer.encode_seconds,
            )
        visit.tries += 1
        if visit.tries >= _TRIES:
            return Arrival(client, None, failure="the node does not keep what it is sent")
        if answer.version < 0:
            self._told.discard(client)
        self._traffic.found(client, max(answer.version, 0))
        self._send(client, visit, ends)
        return None
