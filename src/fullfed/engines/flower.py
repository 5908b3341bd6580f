"""The engine that carries plans and reports over Flower's Grid.

Orders are pushed to the SuperLink, answers pulled one at a time as they come. An order that was
lost on its way, or to a node that went away, is sent again when the node is there: the worker
remembers its answer, so nothing is done twice. What a worker itself answers is final. What an
answer may contain is the inbox's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid

from fullfed.config import DeploymentTable
from fullfed.engines.flower_messages import (
    Connection,
    FlowerMessenger,
    LostMessage,
    SentMessage,
    frames_of,
)
from fullfed.engines.node_messages import Answer, Order
from fullfed.errors import MessageError
from fullfed.federation.client import Worker
from fullfed.federation.inbox import Arrival
from fullfed.federation.log import Log
from fullfed.federation.messages import Update, decode
from fullfed.federation.server import Traffic
from fullfed.payloads import Payload

_PAUSE = 0.2  # seconds between two looks into the SuperLink
_NODES_PAUSE = 2.0  # seconds between two looks at who is connected
_RETRY_SECONDS = (2.0, 60.0)  # before an order that was lost is sent again: at first, at most
_TRIES = 3  # how often a node may lack what it was sent; orders lost once there is a quorum


@dataclass
class _Visit:
    """A client's part in a round.

    Attributes:
        plan: encoded.
        connection: where the order was last sent.
        sent: messages that may still be answered.
        retry_at: not to be sent again before (time.monotonic()), unless the node has come back.
        lost: messages, since the node has been connected.
        lacked: how often the node answered that it lacks something.
        reason: why there is no report yet.
        down: bytes sent so far.
    """

    plan: Payload
    connection: Connection | None = None
    sent: list[SentMessage] = field(default_factory=list)
    retry_at: float = 0.0
    lost: int = 0
    lacked: int = 0
    reason: str = "the node was not there"
    down: int = 0


@dataclass
class FlowerEngine:
    """An Engine whose clients are Flower nodes.

    Args:
        grid: Flower's.
        run: names the run; 16 hexadecimal digits.
        keys: each client's public key as it is now, as the SuperLink knows it, in the clients'
            order.
        settings: the task's, encoded.
        server: the server's own replica and newest update.
        log: the run's.
        traffic: knows what each node holds, and is told what nodes say.
        table: how long a round waits, and for how many.
        rollbacks: the versions that the run was taken back to, in their order; nodes follow.
        aggregated: the last round with each client's report in its update, as far as that is known.
    """

    grid: Grid
    run: str
    keys: Callable[[], Sequence[bytes]]
    settings: bytes
    server: Worker
    log: Log
    traffic: Traffic
    table: DeploymentTable
    rollbacks: tuple[int, ...] = ()
    aggregated: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._messenger = FlowerMessenger(self.grid, self.keys)
        self._told: set[int] = set()  # clients that know the settings
        self._no_longer_due: dict[SentMessage, tuple[int, int]] = {}  # with (client, round)
        self._aggregated = dict(self.aggregated)
        self._log_read = max(self.aggregated.values(), default=-1) + 1  # records that are known

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        """Send every client its plan; yield reports and failures as they come.

        Ends when every client has answered; at the deadline; when a quorum has reported and those
        that have not are not connected; or when too many have failed for a quorum.
        """
        visits = {client: _Visit(plan) for client, plan in plans.items()}
        quorum, reports = self.table.quorum * len(plans), 0
        most = self.table.deadline_seconds
        ends = time.monotonic() + (most if seconds is None else min(seconds, most))
        looked, connections = float("-inf"), dict[int, Connection]()
        while visits and time.monotonic() < ends and reports + len(visits) >= quorum:
            if time.monotonic() - looked > _NODES_PAUSE:
                connections, looked = self._messenger.connections(), time.monotonic()
            if reports >= quorum and not connections.keys() & visits.keys():
                break
            self._send_due(visits, connections, ends)
            for client in sorted(visits):
                arrival = self._receive(client, visits[client], enough=reports >= quorum)
                if arrival is not None:
                    reports += arrival.payload is not None
                    yield replace(arrival, down=self._end(client, visits.pop(client)))
            yield from self._receive_late()
            time.sleep(_PAUSE)
        for client, visit in sorted(visits.items()):
            yield Arrival(client, None, visit.reason, down=self._end(client, visit))

    def _send_due(
        self, visits: Mapping[int, _Visit], connections: Mapping[int, Connection], ends: float
    ) -> None:
        """Send orders to nodes that have come, or come back, or whose order was lost."""
        now, version = time.monotonic(), self.server.replica.version
        for client in sorted(visits.keys() & connections.keys()):
            visit, connection = visits[client], connections[client]
            if connection != visit.connection:
                visit.connection, visit.lost = connection, 0
            elif now < visit.retry_at or any(connection == s.connection for s in visit.sent):
                continue
            visit.reason = "no report before the round ended"
            order, seconds = self._order(client, visit.plan), max(ends - now, 1.0)
            sent = self._messenger.send(connection, order.frames(), seconds, version)
            if sent is None:
                _lose(visit, "the server's SuperLink does not take the order")
            else:
                visit.sent.append(sent)
                visit.down += order.message_bytes

    def _order(self, client: int, plan: Payload) -> Order:
        """The plan, with what the client lacks for it as far as is known."""
        settings = b"" if client in self._told else self.settings
        scales = self.server.scales if settings else b""
        order = Order(self.run, plan, settings, scales, rollbacks=self.rollbacks)
        if submodel := self.server.submodel(plan):
            static_weights = self.server.static_weights() if self.traffic.is_new(client) else b""
            aggregated = self._last_aggregated(client)
            order = replace(order, static_weights=static_weights, aggregated=aggregated)
            return replace(order, submodel=submodel)
        version = self.server.replica.version
        if self.traffic.by_snapshot(client, version):
            snapshot, last = self.server.snapshot()
            return replace(order, snapshot=snapshot, last=last)
        missed = self.traffic.missed(client, version)
        updates = tuple(self.log.read(number) for number in missed)
        return replace(order, updates=updates, first=missed.start)

    def _last_aggregated(self, client: int) -> int:
        """The last round whose update has the client's report in it; -1 if there is none."""
        for number in range(max(self._log_read, self.log.first), len(self.log)):
            aggregated = decode(self.log.read(number), Update).values.get("clients")
            if isinstance(aggregated, list):
                self._aggregated |= {c: number for c in aggregated if isinstance(c, int)}
        self._log_read = len(self.log)
        return self._aggregated.get(client, -1)

    def _receive(self, client: int, visit: _Visit, enough: bool) -> Arrival | None:
        """What a client came to, or None as long as it has not come to anything."""
        for sent in list(visit.sent):
            reply = self._messenger.receive(sent)
            if reply is None:
                continue
            visit.sent.remove(sent)
            if not isinstance(reply, LostMessage):
                return self._after_answer(client, visit, reply)
            _lose(visit, reply.reason)
            if enough and visit.lost >= _TRIES:
                return Arrival(client, None, failure=visit.reason)
        return None

    def _after_answer(self, client: int, visit: _Visit, reply: Message) -> Arrival | None:
        try:
            answer = Answer.of(frames_of(reply.content))
        except MessageError as error:
            return Arrival(client, None, failure=str(error))
        if not answer.lacks:
            self._told.add(client)
            return self._arrival(client, answer)
        visit.lacked += 1
        if visit.lacked >= _TRIES:
            return Arrival(client, None, failure="the node does not keep what it is sent")
        if answer.version < 0:
            self._told.discard(client)
        self.traffic.found(client, answer.version)
        visit.retry_at = 0.0
        return None

    def _end(self, client: int, visit: _Visit) -> int:
        """Wait for the client no longer; return the bytes it was sent.

        It counts as holding what it was sent, until it says otherwise.
        """
        round = self.server.replica.version
        self._no_longer_due |= dict.fromkeys(visit.sent, (client, round))
        if visit.down:
            self.traffic.catch_up(client, round)
        return visit.down

    def _receive_late(self) -> Iterator[Arrival]:
        """Late replies: to orders of earlier rounds, and second ones of this round."""
        for sent, (client, round) in list(self._no_longer_due.items()):
            reply = self._messenger.receive(sent)
            if reply is None:
                continue
            del self._no_longer_due[sent]
            if isinstance(reply, LostMessage):
                continue
            late = round != self.server.replica.version
            try:
                answer = Answer.of(frames_of(reply.content))
            except MessageError as error:
                yield Arrival(client, None, failure=str(error), late=late)
                continue
            if answer.report:
                yield replace(self._arrival(client, answer), late=late)

    def _arrival(self, client: int, answer: Answer) -> Arrival:
        """What the client sent; no time that it claims counts for longer than a round lasts."""
        most = self.table.deadline_seconds
        measured = (answer.train_seconds, answer.encode_seconds)
        train, encode = (min(max(seconds, 0.0), most) for seconds in measured)
        return Arrival(client, answer.report or None, answer.failure, train, encode)


def _lose(visit: _Visit, reason: str) -> None:
    """A message of the visit was lost."""
    first, most = _RETRY_SECONDS
    visit.retry_at = time.monotonic() + min(first * 2**visit.lost, most)
    visit.lost += 1
    visit.reason = reason
