"""The server step: how much of an update is applied. The automatic rule is in curvature.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.federation.messages import Plan, Report, Update, Value


@dataclass(frozen=True)
class Trained:
    """A client's visit between training and encoding; the model is as training left it.

    Attributes:
        model: holds the trained weights; a rule may change them, the visit restores them.
        before: the trained parameters' values at the start, by name; none where
            ``Composition.sets_aside``.
        after: the parameters themselves, by name.
        batch: the first batch of the visit.
        first_loss: its loss before training.
    """

    model: PreTrainedModel
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    batch: Batch
    first_loss: float


class StepRule(Protocol):
    def measure(self, trained: Trained, plan: Plan, last: Update | None) -> dict[str, Value]:
        """What a client adds to its report for the rule; leaves the model at ``before``."""

    def check(self, report: Report) -> None:
        """Raise MessageError unless the report holds what ``measure`` adds."""

    def decide(
        self, reports: Sequence[Report], energy: float | None, last: Update | None
    ) -> dict[str, Value]:
        """The values an update carries for the rule: ``server_step`` and its memory.

        Args:
            reports: without their tensors.
            energy: the codec's estimate of ||mean delta||**2, where it has one.
            last: the previous round's update.
        """


@dataclass(frozen=True)
class ConstantStep:
    """The same step in every round."""

    step: float

    def measure(self, trained: Trained, plan: Plan, last: Update | None) -> dict[str, Value]:
        return {}

    def check(self, report: Report) -> None:
        pass

    def decide(
        self, reports: Sequence[Report], energy: float | None, last: Update | None
    ) -> dict[str, Value]:
        return {"server_step": self.step}
