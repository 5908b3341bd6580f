"""The client's side: one replica, and the data of the clients it works for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fullfed.data.tokens import TokenizedExample
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Plan, Update, decode, encode
from fullfed.federation.method import Method, VisitError
from fullfed.federation.replica import Replica


class Worker:
    """Carries out plans for clients whose data it holds; the data never leave it.

    Args:
        replica: brought up to date by ``deliver``.
        method: how to train and report.
        examples: each client's own tokenised samples.

    Attributes:
        last: the newest update the replica has, None at the base model.
    """

    def __init__(
        self,
        replica: Replica,
        method: Method,
        examples: Mapping[int, Sequence[TokenizedExample]],
    ) -> None:
        self.replica = replica
        self._method = method
        self._examples = examples
        self.last: Update | None = None

    def deliver(self, update: bytes) -> None:
        """Apply one encoded update to the replica."""
        decoded = decode(update, Update)
        self.replica.apply(decoded)
        self.last = decoded

    def visit(self, plan: bytes) -> Arrival:
        """Carry out one encoded plan; a failure comes back as an arrival without payload."""
        order = decode(plan, Plan)
        try:
            visit = self._method.train(
                self.replica.model, order, self._examples[order.client], self.last
            )
        except VisitError as error:
            return Arrival(order.client, None, failure=str(error))
        return Arrival(
            order.client,
            encode(visit.report),
            train_seconds=visit.train_seconds,
            encode_seconds=visit.encode_seconds,
        )
