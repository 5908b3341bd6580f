"""One round: plan, train, merge, append. The same for every method and engine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival, Inbox
from fullfed.federation.messages import Report, Update, encode
from fullfed.federation.method import Method
from fullfed.sketch.checks import is_finite


class Engine(Protocol):
    """What carries messages between a server and its clients."""

    def exchange(self, plans: Mapping[int, bytes]) -> Iterator[Arrival]:
        """Send each client its encoded plan; yield what comes back, as it comes."""


@dataclass(frozen=True)
class RoundResult:
    """A round's update and its account.

    Attributes:
        update: what every replica applies next.
        merged: the clients whose reports are in it.
        refused: (client, reason) of everything that was not let in.
        loss: the merged clients' mean training loss, nats per answer token, each client
            weighted equally; None if there are none.
        up: encoded bytes received from each client, refused ones included.
        down: encoded bytes sent to each client of the cohort, as the engine counted them.
        train_seconds, encode_seconds: summed over the clients.
        aggregate_seconds: the server's own work.
    """

    update: Update
    merged: tuple[int, ...]
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
        else method.merge(plans, itertools.chain([first], reports), last)
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
        merged=tuple(sorted(inbox.accepted)),
        refused=tuple(inbox.refused),
        loss=account.loss / len(inbox.accepted) if inbox.accepted else None,
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
    """Counts what passes on its way to the merge."""

    def __init__(self, cohort: Iterable[int], on_arrival: Callable[[Arrival], None]) -> None:
        self._on_arrival = on_arrival
        self.up: dict[int, int] = {}
        self.down = dict.fromkeys(cohort, 0)
        self.loss = self.train_seconds = self.encode_seconds = self.waiting_seconds = 0.0

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
            self.loss += report.loss
            yield report
