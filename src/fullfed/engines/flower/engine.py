"""The engine that carries plans and reports over Flower's Grid.

Orders are pushed to the SuperLink, answers pulled one at a time as they come. An order that was
lost on its way, or to a node that went away, is sent again when the node is there: the worker
remembers its answer, so nothing is done twice. What a worker itself answers is its last word. What
an answer may contain is the inbox's business.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid

from fullfed.config import DeploymentTable
from fullfed.engines.flower.orders import Answer, Order
from fullfed.engines.flower.post import Letter, Loss, Post, Station
from fullfed.engines.flower.records import pieces_of
from fullfed.federation.inbox import Arrival
from fullfed.federation.log import Log
from fullfed.federation.messages import MessageError, Update, decode
from fullfed.federation.traffic import Traffic
from fullfed.federation.worker import Worker

_PAUSE = 0.2  # seconds between two looks into the SuperLink
_NODES_PAUSE = 2.0  # seconds between two looks at who is there
_RETRY_SECONDS = (2.0, 60.0)  # before an order that was lost is sent again: at first, at most
_TRIES = 3  # how often a node may lack what it was sent; orders lost once there is a quorum


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
        station: where the order was last sent.
        letters: that may still be answered.
        again: not to be sent again before (time.monotonic()), unless the node has come back.
        losses: of letters, since the node has been there.
        lacked: how often the node answered that it lacks something.
        trouble: why there is no report yet.
        down: bytes of messages sent so far.
    """

    plan: bytes
    station: Station | None = None
    letters: list[Letter] = field(default_factory=list)
    again: float = 0.0
    losses: int = 0
    lacked: int = 0
    trouble: str = "the node was not there"
    down: int = 0


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
        self._post = Post(grid, membership.clients)
        self._membership = membership
        self._server = server
        self._log = log
        self._traffic = traffic
        self._table = table
        self._told: set[int] = set()  # clients that know the terms
        self._strays: dict[Letter, tuple[int, int]] = {}  # (client, round) no longer waited for
        self._merged: dict[int, int] = {}  # the last round with each client's report, ...
        self._seen = 0  # ... as far as the log has been looked through

    def exchange(self, plans: Mapping[int, bytes]) -> Iterator[Arrival]:
        """Send every client its plan; yield reports and failures as they come.

        Ends when every client has answered; at the deadline; when a quorum has reported and those
        that have not are not connected; or when too many have failed for a quorum.
        """
        visits = {client: _Visit(plan) for client, plan in plans.items()}
        quorum, reports = self._table.quorum * len(plans), 0
        ends = time.monotonic() + self._table.deadline_seconds
        looked, stations = float("-inf"), dict[int, Station]()
        while visits and time.monotonic() < ends and reports + len(visits) >= quorum:
            if time.monotonic() - looked > _NODES_PAUSE:
                stations, looked = self._post.stations(), time.monotonic()
            if reports >= quorum and not stations.keys() & visits.keys():
                break
            self._send_due(visits, stations, ends)
            for client in sorted(visits):
                arrival = self._receive(client, visits[client], enough=reports >= quorum)
                if arrival is not None:
                    reports += arrival.payload is not None
                    yield replace(arrival, down=self._end(client, visits.pop(client)))
            yield from self._receive_strays()
            time.sleep(_PAUSE)
        for client, visit in sorted(visits.items()):
            yield Arrival(client, None, visit.trouble, down=self._end(client, visit))

    def _send_due(
        self, visits: Mapping[int, _Visit], stations: Mapping[int, Station], ends: float
    ) -> None:
        """Send orders to nodes that have come, or come back, or whose order was lost."""
        now = time.monotonic()
        for client in sorted(visits.keys() & stations.keys()):
            visit = visits[client]
            if stations[client] != visit.station:
                visit.station, visit.losses = stations[client], 0
            elif now < visit.again or any(stations[client] == o.station for o in visit.letters):
                continue
            visit.trouble = "no report before the round ended"
            order, version = self._order(client, visit.plan), self._server.replica.version
            seconds = max(ends - now, 1.0)
            letter = self._post.send(visit.station, order.pieces(), seconds, str(version))
            if letter is None:
                self._lose(visit, "the server's SuperLink does not take the order")
            else:
                visit.letters.append(letter)
                visit.down += order.message_bytes

    def _order(self, client: int, plan: bytes) -> Order:
        """The plan, with what the client lacks for it as far as is known."""
        run, version = self._membership.run, self._server.replica.version
        order = Order(run, plan)
        if client not in self._told:
            order = replace(order, terms=self._membership.terms)
        if handout := self._server.submodel(plan):
            equipment = self._server.static_weights() if self._traffic.is_new(client) else b""
            merged = self._last_merged(client)
            return replace(order, equipment=equipment, handout=handout, merged=merged)
        if self._traffic.by_snapshot(client, version):
            snapshot, last = self._server.snapshot()
            return replace(order, snapshot=snapshot, last=last)
        missed = self._traffic.missed(client, version)
        updates = tuple(self._log.read(number) for number in missed)
        return replace(order, updates=updates, first=missed.start)

    def _last_merged(self, client: int) -> int:
        """The last round whose update has the client's report in it; -1 if there is none."""
        for number in range(self._seen, len(self._log)):
            merged = decode(self._log.read(number), Update).values.get("merged")
            if isinstance(merged, list):
                self._merged |= {c: number for c in merged if isinstance(c, int)}
        self._seen = len(self._log)
        return self._merged.get(client, -1)

    def _receive(self, client: int, visit: _Visit, enough: bool) -> Arrival | None:
        """What a client came to, or None as long as it has not come to anything."""
        for letter in list(visit.letters):
            reply = self._post.receive(letter)
            if reply is None:
                continue
            visit.letters.remove(letter)
            if not isinstance(reply, Loss):
                return self._after_answer(client, visit, reply)
            self._lose(visit, reply.reason)
            if enough and visit.losses >= _TRIES:
                return Arrival(client, None, failure=visit.trouble)
        return None

    def _lose(self, visit: _Visit, reason: str) -> None:
        first, most = _RETRY_SECONDS
        visit.again = time.monotonic() + min(first * 2**visit.losses, most)
        visit.losses += 1
        visit.trouble = reason

    def _after_answer(self, client: int, visit: _Visit, reply: Message) -> Arrival | None:
        try:
            answer = Answer.of(pieces_of(reply.content))
        except MessageError as error:
            return Arrival(client, None, failure=str(error))
        if not answer.lacks:
            self._told.add(client)
            return _arrival(client, answer)
        visit.lacked += 1
        if visit.lacked >= _TRIES:
            return Arrival(client, None, failure="the node does not keep what it is sent")
        if answer.version < 0:
            self._told.discard(client)
        self._traffic.found(client, answer.version)
        visit.again = 0.0
        return None

    def _end(self, client: int, visit: _Visit) -> int:
        """Wait no longer for what else a client may answer; return the bytes it was sent.

        It counts as holding what it was sent, until it says otherwise.
        """
        round = self._server.replica.version
        self._strays |= dict.fromkeys(visit.letters, (client, round))
        if visit.down:
            self._traffic.catch_up(client, round)
        return visit.down

    def _receive_strays(self) -> Iterator[Arrival]:
        """Reports nobody waits for any more: from earlier rounds, and second ones."""
        for letter, (client, round) in list(self._strays.items()):
            reply = self._post.receive(letter)
            if reply is None:
                continue
            del self._strays[letter]
            if isinstance(reply, Loss):
                continue
            late = round != self._server.replica.version
            try:
                answer = Answer.of(pieces_of(reply.content))
            except MessageError as error:
                yield Arrival(client, None, failure=str(error), late=late)
                continue
            if answer.report:
                yield replace(_arrival(client, answer), late=late)


def _arrival(client: int, answer: Answer) -> Arrival:
    return Arrival(
        client,
        answer.report or None,
        answer.failure,
        answer.train_seconds,
        answer.encode_seconds,
    )
