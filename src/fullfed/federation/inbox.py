"""The server's letter box: lets in one valid report a client, whatever arrives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fullfed.federation.messages import MessageError, Plan, Report, decode
from fullfed.federation.method import Method


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
