"""Local optimizers: how a client improves the trained parameters in one visit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.federation.messages import Plan
from fullfed.training.first_order import FirstOrder
from fullfed.training.loss import answer_loss

Loss = Callable[[PreTrainedModel, Batch], Tensor]


@dataclass(frozen=True)
class Improvement:
    """What a visit's training came to, besides the parameters it changed.

    Attributes:
        losses: of every step, nats per answer token.
        walk: of zeroth-order steps, in their order: the direction's number and the derivative
            along it, float32.
        exact: the trained values in float32, by name, where parameters themselves are coarser.
        kept: what the client's next visit of the same kind may go on from.
    """

    losses: list[float]
    walk: tuple[tuple[int, float], ...] = ()
    exact: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)


class LocalOptimizer(Protocol):
    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
    ) -> Improvement:
        """Take one step a batch on ``parameters``, in place.

        Raises:
            TrainingError: a loss is not finite, or the plan asks for what cannot be done.
        """


@dataclass(frozen=True)
class ByGradients:
    """First-order optimisation, as the recipe's table ``local`` says.

    Attributes:
        keep: whether the optimizer's state is kept for the client's next visit; else every visit
            begins with a new one.
        kept: the state to go on from.
    """

    optimizer: FirstOrder
    keep: bool = False
    kept: Mapping[str, Tensor] = field(default_factory=dict)

    def continuing(self, kept: Mapping[str, Tensor]) -> ByGradients:
        """The same, from where an earlier visit ended."""
        return replace(self, kept=kept)

    def loss(self, parameters: Sequence[Tensor]) -> Loss:
        """What a visit that begins at ``parameters`` minimises; methods may add to it."""
        return answer_loss

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
    ) -> Improvement:
        stepper = self.optimizer.stepper(parameters, self.kept)
        trained = list(parameters.values())
        losses = self.optimizer.improve(model, trained, batches, self.loss(trained), stepper)
        kept = stepper.state() if self.keep else {}
        return Improvement(losses, exact=stepper.masters, kept=kept)
