"""What a codec does: a client's change becomes tensors in a report, reports become one
update, and an update changes a replica. Implementations: dense.py, sketched.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fullfed.federation.messages import Plan, Report, Update, Value


@dataclass(frozen=True)
class Payload:
    """Values and tensors of a message, before they are given a name and an address.

    Attributes:
        kept: what the client that made it keeps of it; never sent.
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """What a visit made of the trained parameters.

    Attributes:
        before: their values at the start, by name, in the model's order; none where
            ``Composition.sets_aside``.
        after: the parameters as training left them, or float32 copies that are more exact.
        walk: the steps of zeroth-order training, as ``local.Improvement`` has them.
        kept: what the codec kept of the client's last visit of the same kind.
    """

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    walk: tuple[tuple[int, float], ...] = ()
    kept: Mapping[str, Tensor] = field(default_factory=dict)


class Codec(Protocol):
    @property
    def cumulative(self) -> bool:
        """Whether an update says what became of the base model, not of the last version.

        Such an update applies to the base and replaces all earlier ones.
        """

    def plan(self, round: int, last: Update | None) -> Payload:
        """What every client of the round needs to know beyond the recipe."""

    def encode(self, change: Change, plan: Plan) -> Payload:
        """A client's change."""

    def report_bytes(self, plan: Plan) -> int:
        """Bytes of the tensors in an honest report."""

    def check(self, report: Report, plan: Plan) -> None:
        """Raise MessageError unless the report's tensors fit the plan."""

    def merge(
        self, reports: Iterable[tuple[float, Report]], plan: Payload, last: Update | None
    ) -> Payload:
        """The weighted mean of reports as the content of an update; weights need not sum to 1."""

    def energy(self, merged: Payload) -> float | None:
        """||mean delta||**2 of what was merged, if the noise of applying it follows from that."""

    def apply(self, parameters: Mapping[str, Tensor], update: Update) -> None:
        """Change a replica's parameters (``Scope.replicated``) in place."""
