"""The server's side of a round, the same for every method and engine: plan, train, aggregate.

``run_round`` is the round. ``Traffic`` knows what each client holds of a run, and so what it has to
be sent. What is let in of what arrives is ``inbox.py``'s business.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.errors import UserError
from fullfed.federation.held_out import Checked, HeldOutCheck
from fullfed.federation.inbox import Arrival, Inbox
from fullfed.federation.messages import Plan, Report, Update, encode
from fullfed.federation.method import NOTHING, Method, sent
from fullfed.federation.replica import content_hash
from fullfed.headway import Headway, Observer, unobserved
from fullfed.payloads import Payload
from fullfed.sketch.checks import is_finite


class Engine(Protocol):
    """What carries messages between a server and its clients."""

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        """Send each client its encoded plan; yield what comes back in this round, as it comes.

        Args:
            seconds: that it may take at most; None for as long as a round may.
        """


@dataclass(frozen=True)
class RoundResult:
    """A round's update and its account.

    Attributes:
        update: what every replica applies next.
        aggregated: the clients whose reports are in it.
        refused: (client, reason) of everything that was not let in.
        limited: of each client whose report counts as fewer samples than it claims: (samples
            claimed, samples counted).
        checked: what the held-out check found; None where there is none.
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
    limited: Mapping[int, tuple[int, int]]
    checked: Checked | None
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
    model: PreTrainedModel,
    on_arrival: Callable[[Arrival], None] = lambda arrival: None,
    quorum: float = 0.0,
    samples: Mapping[int, int] | None = None,
    folder: Path | None = None,
    observer: Observer = unobserved,
    exact: Mapping[str, Tensor] = NOTHING,
    check: HeldOutCheck | None = None,
    run: str = "",
    moments: Mapping[str, Tensor] = NOTHING,
) -> RoundResult:
    """Run one round and return its update; appending it to the log is the caller's.

    Args:
        last: the previous round's update, None in round 0.
        model: the server's, at version ``round``; is only looked at.
        on_arrival: called with each arrival, for progress.
        quorum: the share of the cohort that must have sent a usable report.
        samples, folder, exact, check: as for ``Inbox``.
        run: names the run, as clients know it.
        moments: of the server's optimizer, which a replica keeps beside the model.
        observer: is told how the aggregation gets on.

    Raises:
        UserError: no client sent a usable report, or fewer than the quorum (names the first
            reason), or their mean is not finite.
    """
    started = time.perf_counter()
    plans = method.plans(round, last)
    if method.sums is not None and (method.sums.secure or not plans):
        replica = {**dict(model.named_parameters()), **exact, **moments}
        name = run, content_hash(replica)
        return _run_summed(method, engine, plans, last, round, on_arrival, quorum, name)
    outgoing = {plan.client: encode(plan) for plan in sent(method, plans, round)}
    inbox = Inbox(method, plans, model, samples, folder, exact, check)
    account = _Account(outgoing, on_arrival)
    arrivals = account.of_arrivals(engine.exchange(outgoing))
    reports = account.of_reports(inbox, arrivals, observer)
    first = list(itertools.islice(reports, 1))  # by now all have arrived
    if first and len(inbox.accepted) < quorum * len(plans):
        raise _too_few(round, inbox, account)
    if first:
        aggregated = method.aggregate(plans, itertools.chain(_taken(first), reports), last)
        update: Update | None = method.completed(aggregated, model)
    else:
        update = method.skip(round, last)
    if update is None:
        raise _too_few(round, inbox, account)
    if not all(is_finite(tensor) for tensor in update.tensors.values()):
        raise UserError(
            f"round {round}: the clients' mean overflows; lower local.learning_rate or set "
            "local.clip, and start again."
        )
    return RoundResult(
        update=update,
        aggregated=tuple(inbox.accepted),
        refused=tuple(inbox.refused),
        limited=inbox.limited,
        checked=None if check is None else inbox.checked,
        loss=_loss(method, update, account.losses),
        up=account.up,
        down=account.down,
        train_seconds=account.train_seconds,
        encode_seconds=account.encode_seconds,
        aggregate_seconds=time.perf_counter() - started - account.waiting_seconds,
    )


def _loss(method: Method, update: Update, losses: Sequence[float]) -> float | None:
    """The clients' mean training loss, as far as it is known."""
    if method.sums is not None:
        known = update.values.get("train_loss")
        return known if isinstance(known, float) and not update.skipped else None
    return method.mean(losses) if losses else None


def _run_summed(
    method: Method,
    engine: Engine,
    plans: Sequence[Plan],
    last: Update | None,
    round: int,
    on_arrival: Callable[[Arrival], None],
    quorum: float,
    name: tuple[str, str],
) -> RoundResult:
    """The same where the server learns the sum of the reports alone, or nobody was drawn."""
    from fullfed.federation.secure_round import SecureRound

    started = time.perf_counter()
    account = _Account([plan.client for plan in plans], on_arrival)

    def exchange(
        outgoing: Mapping[int, Payload], seconds: float | None, visit: bool
    ) -> list[Arrival]:
        arrivals = account.of_arrivals(engine.exchange(outgoing, seconds), told=visit)
        return sorted(arrivals, key=lambda arrival: arrival.sender)

    secure = SecureRound(method, exchange, *name, quorum * len(plans))
    update = secure.update(plans, last) if plans else None
    if update is None:
        assert method.sums is not None
        update = method.sums.pass_over(round, last)
    return RoundResult(
        update=update,
        aggregated=secure.summed,
        refused=tuple(secure.refused),
        limited={},
        checked=None,
        loss=_loss(method, update, []),
        up=account.up,
        down=account.down,
        train_seconds=account.train_seconds,
        encode_seconds=account.encode_seconds,
        aggregate_seconds=time.perf_counter() - started - account.waiting_seconds,
    )


def _too_few(round: int, inbox: Inbox, account: _Account) -> UserError:
    if not inbox.refused:
        return UserError(f"round {round}: no client answered; mend the cause and resume.")
    if account.only_drawn:
        return UserError(
            f"round {round}: all visits end in failures that the recipe simulates, and would again;"
            " lower simulation.failures, raise federation.clients_per_round or take another "
            "federation.seed, and start a new run."
        )
    client, reason = inbox.refused[0]
    some = f"only {len(inbox.accepted)} clients" if inbox.accepted else "no client"
    return UserError(
        f"round {round}: {some} sent a usable report (client {client}: {reason}); "
        "mend the cause and resume."
    )


def _taken(reports: list[Report]) -> Iterator[Report]:
    """The reports, which the list does not hold any longer."""
    while reports:
        yield reports.pop(0)


class _Account:
    """Counts what passes on its way to the aggregation."""

    def __init__(self, cohort: Iterable[int], on_arrival: Callable[[Arrival], None]) -> None:
        self._on_arrival = on_arrival
        self.up: dict[int, int] = {}
        self.down = dict.fromkeys(cohort, 0)
        self.losses: list[float] = []
        self.only_drawn = True
        self.train_seconds = self.encode_seconds = self.waiting_seconds = 0.0

    def of_arrivals(self, arrivals: Iterator[Arrival], told: bool = True) -> Iterator[Arrival]:
        """
        Args:
            told: whether ``on_arrival`` is called.
        """
        while True:
            asked = time.perf_counter()
            arrival = next(arrivals, None)
            self.waiting_seconds += time.perf_counter() - asked
            if arrival is None:
                return
            if arrival.sender in self.down:
                self.down[arrival.sender] += arrival.down
            if arrival.under_way:
                continue
            self.up[arrival.sender] = self.up.get(arrival.sender, 0) + len(arrival.payload or b"")
            self.train_seconds += arrival.train_seconds
            self.encode_seconds += arrival.encode_seconds
            self.only_drawn &= arrival.drawn
            if told:
                self._on_arrival(arrival)
            yield arrival
            del arrival  # and its report

    def of_reports(
        self, inbox: Inbox, arrivals: Iterator[Arrival], observer: Observer
    ) -> Iterator[Report]:
        for report in inbox.in_client_order(arrivals):
            observer(Headway("aggregate", len(self.losses), len(inbox.accepted)))
            self.losses.append(report.loss)
            yield report
            del report  # before the next is decoded: one may be as large as the model


class Sizes(Protocol):
    """What knows how many bytes each update of a run has, from the first on that is kept."""

    @property
    def first(self) -> int: ...

    def size(self, index: int, /) -> int: ...


class Traffic:
    """Knows which model version each client holds.

    Everybody holds the base model, version 0. A client that missed several updates is sent them,
    or a snapshot of the model where that is fewer bytes or the log has them no more. A client
    without a replica is sent its static weights with its first plan.

    Args:
        log: of the run; only how long its records are counts.
        snapshot_bytes: what sending the newest version whole costs.
        cumulative: the newest update replaces all earlier ones.
    """

    def __init__(
        self, log: Sizes, snapshot_bytes: Callable[[], int], cumulative: bool = False
    ) -> None:
        self._log = log
        self._snapshot_bytes = snapshot_bytes
        self._cumulative = cumulative
        self._versions: dict[int, int] = {}  # of each client that has been sent something
        self._snapshot = -1, 0  # the version whose snapshot was measured last, and its bytes

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
        """Whether several updates that ``client`` missed are more bytes than a snapshot, or are not
        kept any more."""
        missed = self.missed(client, version)
        if len(missed) <= 1:
            return False
        return missed.start < self._log.first or self._snapshot_at(version) < self._bytes(missed)

    def catch_up(self, client: int, version: int) -> int:
        """Record that ``client`` now has ``version``; return the bytes sent to it for that."""
        by_snapshot, missed = self.by_snapshot(client, version), self.missed(client, version)
        self._versions[client] = version
        return self._snapshot_at(version) if by_snapshot else self._bytes(missed)

    def _snapshot_at(self, version: int) -> int:
        """Of the newest version; measured once, however many clients ask for it."""
        if self._snapshot[0] != version:
            self._snapshot = version, self._snapshot_bytes()
        return self._snapshot[1]

    def _bytes(self, versions: Iterable[int]) -> int:
        """Of the updates that start from these versions."""
        return sum(map(self._log.size, versions))
