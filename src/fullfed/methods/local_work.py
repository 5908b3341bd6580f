"""Local work: how a client improves the parameters it trains in one visit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import LocalTable, MemoryTable
from fullfed.data.batches import Batch
from fullfed.federation.messages import Plan
from fullfed.federation.method import NOTHING
from fullfed.training.first_order import Improvement, Loss, train
from fullfed.training.loss import answer_loss
from fullfed.training.watch import OnStep, unwatched


class LocalWork(ABC):
    @property
    def stateful(self) -> bool:
        """Whether a client's next visit goes on from this one's ``Improvement.state``."""
        return False

    @abstractmethod
    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
        state: Mapping[str, Tensor],
        exact: Mapping[str, Tensor] = NOTHING,
        on_step: OnStep = unwatched,
    ) -> Improvement:
        """Take one step a batch on ``parameters``, in place.

        Args:
            parameters: by name; nothing else of the model changes.
            state: what the client's last visit left, empty at first.
            exact: float32, by name: what parameters in 16 bits are rounded from, and training
                goes on from. They stay as they are.
            on_step: to be told each step's loss, for progress.

        Raises:
            TrainingError: a loss is not finite, or the plan asks for what cannot be done.
        """


@dataclass(frozen=True)
class FirstOrder(LocalWork):
    """First-order optimisation, as the recipe's tables say.

    Attributes:
        local, memory: the recipe's.
        keep: whether the optimizer's state is kept for the client's next visit; else every visit
            begins with a new one.
    """

    local: LocalTable
    memory: MemoryTable
    keep: bool = False

    @property
    def stateful(self) -> bool:
        return self.keep

    def loss(self, parameters: Sequence[Tensor]) -> Loss:
        """What a visit that begins at ``parameters`` minimises; methods may add to it."""
        return answer_loss

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
        state: Mapping[str, Tensor],
        exact: Mapping[str, Tensor] = NOTHING,
        on_step: OnStep = unwatched,
    ) -> Improvement:
        loss = self.loss(list(parameters.values()))
        tables = self.local, self.memory
        done = train(model, parameters, batches, *tables, loss, state, exact, on_step)
        return done if self.keep else replace(done, state={})
