"""Local work: how a client improves the parameters it trains in one visit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import LocalTable
from fullfed.data.batches import Batch, training_batches
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.federation.messages import Plan
from fullfed.federation.method import NOTHING
from fullfed.methods.setting import Setting
from fullfed.randomness import Stream
from fullfed.training.first_order import Improvement, train
from fullfed.training.loss import Loss, answer_loss
from fullfed.training.optimizers import normalises
from fullfed.training.watch import OnStep, unwatched

if TYPE_CHECKING:
    from fullfed.privacy.summing import Owner


class LocalWork(ABC):
    @property
    def stateful(self) -> bool:
        """Whether a client's next visit goes on from this one's ``Improvement.state``."""
        return False

    @property
    def normalises(self) -> bool:
        """Whether parameters change about as much where the loss is flat as where it is steep."""
        return False

    @property
    def protects_records(self) -> bool:
        """Whether nothing of a record goes out without noise: no loss is told, and the noise is of
        what ``owned`` brings."""
        return False

    def owned(self, run: str, owner_of: Callable[[int], Owner]) -> LocalWork:
        """The work of clients that have something nobody else has, in a run of this name."""
        return self

    def on(self, examples: Sequence[TokenizedExample]) -> LocalWork:
        """The work of the client with these examples, where batches of them are not enough."""
        return self

    def batches(
        self,
        examples: Sequence[TokenizedExample],
        batch_size: int,
        steps: int,
        stream: Stream,
        plan: Plan,
    ) -> Iterator[Batch]:
        """A visit's, one a step; ``stream`` is the recipe's randomness for them.

        Raises:
            TrainingError: the client does not take part.
        """
        return training_batches(examples, batch_size, steps, stream)

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
        setting: the federation; has the tables.
    """

    setting: Setting

    @property
    def stateful(self) -> bool:
        return self.setting.local.optimizer_state == "kept"

    @property
    def normalises(self) -> bool:
        return normalises(self.setting.local)

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
        setting, loss = self.setting, self.loss(list(parameters.values()))
        local = setting.local.in_round(plan.version, setting.federation.rounds)
        tables = local, setting.memory
        done = train(model, parameters, batches, *tables, loss, state, exact, on_step)
        return done if self.stateful else replace(done, state={})


def check_without_gradients(local: LocalTable) -> None:
    """See that a recipe asks a method without gradients for nothing that only gradients have.

    Raises:
        UserError: it does.
    """
    asked = {
        "schedule": local.schedule != "constant",
        "warmup_rounds": local.warmup_rounds > 0,
        "warmup_steps": local.warmup_steps > 0,
        "optimizer_state": local.optimizer_state == "kept",
    }
    for key in (key for key, found in asked.items() if found):
        raise UserError(
            f"local.{key}: methods without gradients take steps of one size and keep no optimizer; "
            "leave it out."
        )
