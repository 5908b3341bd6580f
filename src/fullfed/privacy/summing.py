"""A client's side of a round of which only the sum is known: from its report to what it sends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Report, encode
from fullfed.federation.method import Sums
from fullfed.privacy.identities import Identity, new_identity
from fullfed.privacy.keystream import derived
from fullfed.privacy.participant import Participant, Trust
from fullfed.privacy.phases import reply
from fullfed.privacy.records import Ledger, LedgerInMemory

GIVEN = "its numbers of this round went out already, and do not go out twice"


class GivenRounds(Protocol):
    """The rounds of a run whose masked numbers a client has sent."""

    def __len__(self) -> int: ...

    def __contains__(self, round: object) -> bool: ...

    def add(self, round: int, /) -> None:
        """Remember a round, for good."""


class GivenInMemory(set[int]):
    """Remembered as long as the process lives."""


@dataclass(frozen=True)
class Owner:
    """What a client has that nobody else has.

    Attributes:
        secret: 32 bytes, of which its rounding and noise follow.
        identity: by which the other clients know it.
        trust: whom it lets into a sum with it.
        given, ledger: see there.
    """

    secret: bytes
    identity: Identity = field(default_factory=new_identity)
    trust: Trust = field(default_factory=Trust)
    given: GivenRounds = field(default_factory=GivenInMemory)
    ledger: Ledger = field(default_factory=LedgerInMemory)


def owners_of(
    secret: bytes, ledger_of: Callable[[int], Ledger] = lambda client: LedgerInMemory()
) -> Callable[[int], Owner]:
    """Those of clients in this process, of whom each has a secret that follows from one.

    What they have given is remembered as long as the process lives.

    Args:
        ledger_of: each client's.
    """
    known: dict[int, Owner] = {}

    def owner_of(client: int) -> Owner:
        if client not in known:
            known[client] = Owner(derived(secret, f"client {client}"), ledger=ledger_of(client))
        return known[client]

    return owner_of


def about(run: str, plan: Plan, model_hash: str) -> str:
    """How clients and server call a round's sum: by all that must be the same for every client.

    It is in every signature, seal and mask, so that clients who were told different things have no
    sum together. Otherwise a server that has all but one round their numbers to nothing would see
    that one's.

    Args:
        run: names the run and its settings.
        plan: of any client of the round.
        model_hash: of the version that the round begins with.
    """
    common = b"".join([encode(replace(plan, client=0)), model_hash.encode()])
    return f"round {plan.round} of run {run}: {hashlib.sha256(common).hexdigest()}"


class SummingClients:
    """Clients of one process.

    Args:
        sums: the method's.
        run: names the run and its settings.
        owner_of: each client's own.
    """

    def __init__(self, sums: Sums, run: str, owner_of: Callable[[int], Owner]) -> None:
        self._sums, self._run, self._owner_of = sums, run, owner_of
        self._round = -1
        self._participants: dict[int, Participant] = {}  # of that round

    def check(self, plan: Plan) -> None:
        """
        Raises:
            MessageError: the client gave its numbers of this round already, or has given them as
                often as the run's privacy budget allows.
        """
        if not self._sums.secure:
            return
        given = self._owner_of(plan.client).given
        if plan.round in given:
            raise MessageError(GIVEN)
        if not self._sums.allows(len(given) + 1):
            raise MessageError("the client's privacy budget is spent")

    def report(self, report: Report, plan: Plan, model_hash: str) -> Report:
        """What is sent in a report's place: its integers; or where the server is to see nobody's,
        the client's keys.

        Args:
            model_hash: of the version that the visit began with.

        Raises:
            MessageError: the plan asks for what cannot be.
        """
        owner, name = self._owner_of(plan.client), about(self._run, plan, model_hash)
        summand = self._sums.summand(report, plan, derived(owner.secret, name))
        if not self._sums.secure:
            return reply(plan, **summand.tensors())
        trust = replace(owner.trust, fewest=max(owner.trust.fewest, self._sums.fewest))
        participant = Participant(
            name,
            plan.client,
            owner.identity,
            summand,
            trust,
            lambda: owner.given.add(plan.round),
        )
        if plan.round != self._round:
            self._round, self._participants = plan.round, {}
        self._participants[plan.client] = participant
        return reply(plan, **participant.keys.tensors())

    def answer(self, plan: Plan) -> Report:
        """A client's answer in one of the phases after its visit.

        Raises:
            MessageError: the client has no part in this, or the request is not an honest one.
        """
        participant = self._participants.get(plan.client)
        if participant is None or self._round != plan.round:
            raise MessageError("the client has no keys for this round's sum")
        return participant.answer(plan)
