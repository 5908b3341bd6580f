"""The client's side: one replica, and the data of the clients it works for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fullfed.data.tokens import TokenizedExample
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Plan, Update, decode, encode
from fullfed.federation.method import NOTHING, Method, VisitError
from fullfed.federation.replica import Replica
from fullfed.federation.states import States, StatesInMemory


class Worker:
    """Carries out plans for clients whose data it holds; the data never leave it.

    Args:
        replica: brought up to date by ``deliver``.
        method: how to train and report.
        examples: each client's own tokenised samples.
        states: where clients keep what they keep between visits.

    Attributes:
        last: the newest update the replica has, None at the base model.
    """

    def __init__(
        self,
        replica: Replica,
        method: Method,
        examples: Mapping[int, Sequence[TokenizedExample]],
        states: States | None = None,
    ) -> None:
        self.replica = replica
        self._method = method
        self._examples = examples
        self._states = states or StatesInMemory()
        self.last: Update | None = None

    def deliver(self, update: bytes) -> None:
        """Apply one encoded update to the replica."""
        decoded = decode(update, Update)
        self.replica.apply(decoded)
        self.last = decoded
        if isinstance(merged := decoded.values.get("merged"), list):
            self._states.settle(decoded.round, [c for c in merged if isinstance(c, int)])

    def visit(self, plan: bytes) -> Arrival:
        """Carry out one encoded plan; a failure comes back as an arrival without payload."""
        order = decode(plan, Plan)
        examples, name = self._examples[order.client], self._method.keeps(order)
        kept = self._states.load(order.client, name, order.round) if name else NOTHING
        try:
            visit = self._method.train(self.replica.model, order, examples, self.last, kept)
        except VisitError as error:
            return Arrival(order.client, None, failure=str(error))
        if name:
            self._states.save(order.client, name, order.round, visit.kept)
        return Arrival(
            order.client,
            encode(visit.report),
            train_seconds=visit.train_seconds,
            encode_seconds=visit.encode_seconds,
        )
