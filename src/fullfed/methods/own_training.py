"""Local work that is a trainer's: a user's own, or one of another library's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.data.client_dataset import ClientDataset
from fullfed.data.tokens import PackedExamples, TokenizedExample
from fullfed.federation.messages import Plan
from fullfed.federation.method import NOTHING
from fullfed.methods.local_work import FirstOrder, LocalWork
from fullfed.methods.setting import Setting
from fullfed.randomness import Purpose, Stream, uniforms
from fullfed.training.first_order import Improvement
from fullfed.training.optimizers import normalises
from fullfed.training.trainer import Trainer, VisitContext, train_with
from fullfed.training.transformers_trainers import (
    DpoTraining,
    SftTraining,
    TransformersTraining,
)
from fullfed.training.watch import OnStep, unwatched


@dataclass(frozen=True)
class OwnTraining(LocalWork):
    """A trainer's work on a client's samples.

    Attributes:
        setting: the federation; has the tables.
        trainer: trains.
        dataset: the client's; see ``on``.
    """

    setting: Setting
    trainer: Trainer
    dataset: ClientDataset | None = None

    @property
    def normalises(self) -> bool:
        """What a trainer of somebody's own does is not known."""
        ours = isinstance(self.trainer, (TransformersTraining, SftTraining, DpoTraining))
        return ours and normalises(self.setting.local)

    def on(self, examples: Sequence[TokenizedExample]) -> OwnTraining:
        assert isinstance(examples, PackedExamples)  # whoever has a trainer keeps their words
        assert examples.source is not None
        return replace(self, dataset=ClientDataset(examples, examples.source))

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
        """See LocalWork; the trainer makes batches of its own."""
        assert self.dataset is not None
        setting, rounds = self.setting, self.setting.federation.rounds
        stream = Stream(setting.seed, Purpose.TRAINER, plan.round, plan.client)
        context = VisitContext(
            plan.client,
            plan.round,
            rounds,
            int(uniforms(stream, 1)[0] * 2**31),
            setting.local.in_round(plan.version, rounds),
            setting.memory,
            self.dataset.tokenizer,
            on_step,
        )
        return train_with(self.trainer, model, parameters, self.dataset, context, exact)


def gradient_work(setting: Setting) -> LocalWork:
    """How clients train by gradients: with the recipe's trainer, or with its optimizer."""
    return FirstOrder(setting) if setting.trainer is None else OwnTraining(setting, setting.trainer)
