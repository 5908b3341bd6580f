"""The server's side of a round of which it learns the sum alone: five phases over any engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fullfed.errors import MessageError, UserError
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Plan, Report, Update, decode, encode
from fullfed.federation.method import Method
from fullfed.payloads import Payload
from fullfed.privacy.coordinator import Coordinator
from fullfed.privacy.phases import CONFIRM, FEWEST, HEADER, SHARES, UNMASK, most_reply_bytes
from fullfed.privacy.summing import GIVEN, about

SECONDS = 300.0  # that a phase may take in which no one trains and nothing large is sent


class Exchange(Protocol):
    """Sends every client what is for it and brings back what comes."""

    def __call__(
        self, outgoing: Mapping[int, Payload], seconds: float | None, visit: bool
    ) -> Sequence[Arrival]: ...


@dataclass
class SecureRound:
    """One round.

    Args:
        method: its ``sums`` are secure.
        exchange: an engine's, counted.
        run: names the run and its settings, as clients know them.
        model_hash: of the version that the round begins with.
        least: how many clients must be in the sum.

    Attributes:
        refused: (client, reason) of everything that was no use.
        summed: the clients whose numbers are in the sum.
    """

    method: Method
    exchange: Exchange
    run: str
    model_hash: str
    least: float
    refused: list[tuple[int, str]] = field(default_factory=list)
    summed: tuple[int, ...] = ()

    def update(self, plans: Sequence[Plan], last: Update | None) -> Update | None:
        """The round's update; None if it must be passed over, because too few clients are left and
        some have given their numbers of this round already.

        Raises:
            UserError: too few clients came through the phases; or one of them lied.
        """
        sums, first = self.method.sums, plans[0]
        assert sums is not None
        name, size = about(self.run, first, self.model_hash), sums.size(first)
        coordinator = Coordinator(name, first.round, *size)
        least = max(self.least, sums.fewest, FEWEST)
        if len(plans) < least:  # as it was drawn, and would be again
            return None
        small = most_reply_bytes
        count = len(plans)
        phases: list[tuple[Callable[[], Sequence[Plan]], Callable[[Report], None], int]] = [
            (lambda: plans, coordinator.take_keys, HEADER),
            (coordinator.share_requests, coordinator.take_shares, small(SHARES, count)),
            (
                coordinator.mask_requests,
                lambda report: self._take_masked(coordinator, report, first),
                self.method.report_limit(first),
            ),
            (coordinator.confirm_requests, coordinator.take_confirmation, small(CONFIRM, count)),
            (coordinator.unmask_requests, coordinator.take_seeds, small(UNMASK, count)),
        ]
        for number, (requests, take, limit) in enumerate(phases):
            seconds = None if number in (0, 2) else SECONDS
            answered = self._phase(requests(), take, limit, seconds, visit=number == 0)
            if answered < max(least, coordinator.fewest):
                if any(GIVEN in reason for _, reason in self.refused):
                    return None
                raise self._too_few(first.round, answered)
        self.summed = tuple(coordinator.summed)
        try:
            total = coordinator.total()
        except (MessageError, ValueError) as error:
            raise UserError(
                f"round {first.round}: the sum cannot be unmasked ({error}); resume, and leave out "
                "who lies."
            ) from error
        return sums.update(first, total, self.summed, last)

    def _phase(
        self,
        requests: Sequence[Plan],
        take: Callable[[Report], None],
        limit: int,
        seconds: float | None,
        visit: bool,
    ) -> int:
        """How many have answered usefully."""
        due = {request.client: request for request in requests}
        outgoing = {client: encode(request) for client, request in due.items()}
        answered: set[int] = set()
        # In the clients' order, whatever they come in: so the same reports make the same sum.
        for arrival in self.exchange(outgoing, seconds, visit):
            try:
                if arrival.sender in answered:
                    raise MessageError("the client has answered this already")
                take(_validated(arrival, due, limit))
                answered.add(arrival.sender)
            except MessageError as error:
                self.refused.append((arrival.sender, str(error)))
        return len(answered)

    def _take_masked(self, coordinator: Coordinator, report: Report, plan: Plan) -> None:
        self.method.check(report, plan)
        coordinator.take_masked(report)

    def _too_few(self, round: int, answered: int) -> UserError:
        client, reason = self.refused[0] if self.refused else (None, "no client answered")
        who = "" if client is None else f"client {client}: "
        return UserError(
            f"round {round}: only {answered} clients are left, too few for a secure sum "
            f"({who}{reason}); mend the cause and resume."
        )


def _validated(arrival: Arrival, due: Mapping[int, Plan], limit: int) -> Report:
    if arrival.late or arrival.sender not in due:
        raise MessageError("the client was not asked for this")
    if arrival.payload is None:
        raise MessageError(arrival.failure)
    report, plan = decode(arrival.payload, Report, limit), due[arrival.sender]
    if (report.client, report.round) != (plan.client, plan.round):
        raise MessageError("the answer is another client's, or of another round")
    return report
