"""Local optimizers: how a client improves the trained parameters in one visit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.federation.messages import Plan
from fullfed.training.first_order import FirstOrder


@dataclass(frozen=True)
class Improvement:
    """What a visit's training came to, besides the parameters it changed.

    Attributes:
        losses: of every step, nats per answer token.
        walk: of zeroth-order steps, in their order: the direction's number and the derivative
            along it, float32.
    """

    losses: list[float]
    walk: tuple[tuple[int, float], ...] = ()


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
    """First-order optimisation, as the recipe's table ``local`` says."""

    optimizer: FirstOrder

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
    ) -> Improvement:
        return Improvement(self.optimizer.improve(model, list(parameters.values()), batches))
