"""The server's side of a round, the same for every method and engine: plan, train, aggregate.

``run_round`` is the round. ``Inbox`` lets in one valid report a client, whatever arrives.
``Traffic`` knows what each client holds of a run, and so what it has to be sent.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fullfed.errors import MessageError, UserError
from fullfed.federation.log import Log
from fullfed.federation.messages import Plan, Report, Update, decode, encode
from fullfed.federation.method import Method
from fullfed.sketch.checks import is_finite


@dataclass(frozen=True)
class Arrival:
    """What an engine brings back from one client.

    Attributes:
        sender: the client, as the engine knows it (not as the payload says).
        payload: the encoded report, or None if the client failed.
        failure: why there is no payload.
        train_seconds, encode_seconds: as the client measured them.
        late: it answers an earlier round's plan.
        down: bytes of the messages that the client was sent for this visit; 0 if none reached it.
    """

    sender: int
    payload: bytes | None
    failure: str = ""
    train_seconds: float = 0.0
    encode_seconds: float = 0.0
    late: bool = False
    down: int = 0


class Engine(Protocol):
    """What carries messages between a server and its clients."""

    def exchange(self, plans: Mapping[int, bytes]) -> Iterator[Arrival]:
        """Send each client its encoded plan; yield what comes back, as it comes."""


@dataclass(frozen=True)
class RoundResult:
    """A round's update and its account.

    Attributes:
        update: what every replica applies next.
        aggregated: the clients whose reports are in it.
        refused: (client, reason) of everything that was not let in.
        loss: their mean training loss by the aggregation rule, nats per answer token; None if
            there are none.
        up: encoded bytes received from each client, refused ones included.
        down: encoded bytes sent to each client of the cohort, as the engine counted them.
        train_seconds, encode_seconds: summed over the clients.
        aggregate_seconds: the server's own work.
    """

    update: Update
    aggregated: tuple[int, ...]
    refused: tuple[tuple[int, str], ...]
    loss: float | None
    up: Mapping[int, int]
    down: Mapping[int, int]
    train_seconds: float
    encode_seconds: float
    aggregate_seconds: float


def run_round(
    method: Method,
    engine: Engine,
    round: int,
    last: Update | None,
    on_arrival: Callable[[Arrival], None] = lambda arrival: None,
    quorum: float = 0.0,
) -> RoundResult:
    """Run one round and return its update; appending it to the log is the caller's.

    Args:
        last: the previous round's update, None in round 0.
        on_arrival: called with each arrival, for progress.
        quorum: the share of the cohort that must have sent a usable report.

    Raises:
        UserError: no client sent a usable report, or fewer than the quorum (names the first
            reason), or their mean is not finite.
    """
    started = time.perf_counter()
    plans = method.plans(round, last)
    outgoing = {plan.client: encode(plan) for plan in plans}
    inbox, account = Inbox(method, plans), _Account(outgoing, on_arrival)
    arrivals = account.of_arrivals(engine.exchange(outgoing))
    reports = account.of_reports(inbox.in_client_order(arrivals))
    first = next(reports, None)
    update = (
        method.skip(round, last)
        if first is None
        else method.aggregate(plans, itertools.chain([first], reports), last)
    )
    if update is None or 0 < len(inbox.accepted) < quorum * len(plans):
        raise _too_few(round, inbox)
    if not all(is_finite(tensor) for tensor in update.tensors.values()):
        raise UserError(
            f"round {round}: the clients' mean overflows; lower local.learning_rate or set "
            "local.clip, and start again."
        )
    return RoundResult(
        update=update,
        aggregated=tuple(sorted(inbox.accepted)),
        refused=tuple(inbox.refused),
        loss=method.mean(account.losses) if account.losses else None,
        up=account.up,
        down=account.down,
        train_seconds=account.train_seconds,
        encode_seconds=account.encode_seconds,
        aggregate_seconds=time.perf_counter() - started - account.waiting_seconds,
    )


def _too_few(round: int, inbox: Inbox) -> UserError:
    if not inbox.refused:
        return UserError(f"round {round}: no client answered; mend the cause and resume.")
    client, reason = inbox.refused[0]
    some = f"only {len(inbox.accepted)} clients" if inbox.accepted else "no client"
    return UserError(
        f"round {round}: {some} sent a usable report (client {client}: {reason}); "
        "mend the cause and resume."
    )


class _Account:
    """Counts what passes on its way to the aggregation."""

    def __init__(self, cohort: Iterable[int], on_arrival: Callable[[Arrival], None]) -> None:
        self._on_arrival = on_arrival
        self.up: dict[int, int] = {}
        self.down = dict.fromkeys(cohort, 0)
        self.losses: list[float] = []
        self.train_seconds = self.encode_seconds = self.waiting_seconds = 0.0

    def of_arrivals(self, arrivals: Iterator[Arrival]) -> Iterator[Arrival]:
        while True:
            asked = time.perf_counter()
            arrival = next(arrivals, None)
            self.waiting_seconds += time.perf_counter() - asked
            if arrival is None:
                return
            self.up[arrival.sender] = self.up.get(arrival.sender, 0) + len(arrival.payload or b"")
            if arrival.sender in self.down:
                self.down[arrival.sender] += arrival.down
            self.train_seconds += arrival.train_seconds
            self.encode_seconds += arrival.encode_seconds
            self._on_arrival(arrival)
            yield arrival

    def of_reports(self, reports: Iterator[Report]) -> Iterator[Report]:
        for report in reports:
            self.losses.append(report.loss)
            yield report


class Inbox:
    """Collects one round's reports.

    Attributes:
        refused: (client, reason) of each arrival that was not let in.
        accepted: the clients whose reports were let in, in order of arrival.
    """

    def __init__(self, method: Method, plans: Sequence[Plan]) -> None:
        self._method = method
        self._plans = {plan.client: plan for plan in plans}
        self._seen: set[int] = set()
        self.refused: list[tuple[int, str]] = []
        self.accepted: list[int] = []

    def in_client_order(self, arrivals: Iterable[Arrival]) -> Iterator[Report]:
        """The valid reports in increasing order of clients, whatever order they arrive in.

        A report is held back only until those of all lower clients are in or given up, so
        where clients answer in order one report is in memory at a time.
        """
        due = sorted(self._plans)
        early: dict[int, Report | None] = {}
        for arrival in arrivals:
            due_now = arrival.sender in self._plans and not arrival.late
            first_word = due_now and arrival.sender not in self._seen
            report = self._accept(arrival)
            if first_word:
                early[arrival.sender] = report
            while due and due[0] in early:
                if (ready := early.pop(due.pop(0))) is not None:
                    yield ready
        for client in due:
            if (late := early.get(client)) is not None:
                yield late

    def _accept(self, arrival: Arrival) -> Report | None:
        try:
            report = self._validate(arrival)
        except MessageError as error:
            self.refused.append((arrival.sender, str(error)))
            return None
        self.accepted.append(arrival.sender)
        return report

    def _validate(self, arrival: Arrival) -> Report:
        if arrival.late:
            raise MessageError("the report came after its round had ended")
        plan = self._plans.get(arrival.sender)
        if plan is None:
            raise MessageError("the client is not in this round's cohort")
        if arrival.sender in self._seen:
            raise MessageError("the client has answered this plan already")
        self._seen.add(arrival.sender)
        if arrival.payload is None:
            raise MessageError(arrival.failure)
        report = decode(arrival.payload, Report, self._method.report_limit(plan))
        if report.client != arrival.sender:
            raise MessageError(f"the report claims to be client {report.client}'s")
        if report.round != plan.round:
            raise MessageError(f"the report is for round {report.round}, not {plan.round}")
        if report.samples == 0:
            raise MessageError("the report says that no sample was used")
        self._method.check(report, plan)
        return report


class Traffic:
    """Knows which model version each client holds.

    Everybody holds the base model, version 0. A client that missed several updates is sent them,
    or a snapshot of the model where that is fewer bytes. A client without a replica is sent its
    static weights with its first plan.

    Args:
        log: of the run.
        snapshot_bytes: what sending the newest version whole costs.
        cumulative: the newest update replaces all earlier ones.
    """

    def __init__(
        self, log: Log, snapshot_bytes: Callable[[], int], cumulative: bool = False
    ) -> None:
        self._log = log
        self._snapshot_bytes = snapshot_bytes
        self._cumulative = cumulative
        self._versions: dict[int, int] = {}  # of each client that has been sent something

    def restore(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take over what the lines of the run's metrics.jsonl say was sent to whom."""
        for record in records:
            for client, down in record["bytes"]["down_by_client"].items():
                if down > 0:
                    self._versions[int(client)] = record["round"]

    def found(self, client: int, version: int) -> None:
        """The client itself says which version it holds; -1 if it knows nothing of the run."""
        if version < 0:
            self._versions.pop(client, None)
        else:
            self._versions[client] = version

    def is_new(self, client: int) -> bool:
        """Whether ``client`` has been sent nothing yet."""
        return client not in self._versions

    def missed(self, client: int, version: int) -> range:
        """The versions whose updates ``client`` needs to get to ``version``."""
        missed = range(self._versions.get(client, 0), version)
        return missed[-1:] if self._cumulative else missed

    def by_snapshot(self, client: int, version: int) -> bool:
        """Whether several updates that ``client`` missed are more bytes than a snapshot."""
        missed = self.missed(client, version)
        return len(missed) > 1 and self._snapshot_bytes() < self._bytes(missed)

    def catch_up(self, client: int, version: int) -> int:
        """Record that ``client`` now has ``version``; return the bytes sent to it for that."""
        by_snapshot, missed = self.by_snapshot(client, version), self.missed(client, version)
        self._versions[client] = version
        return self._snapshot_bytes() if by_snapshot else self._bytes(missed)

    def _bytes(self, versions: Iterable[int]) -> int:
        """Of the updates that start from these versions."""
        sizes = self._log.sizes
        return sum(sizes[version] for version in versions)
