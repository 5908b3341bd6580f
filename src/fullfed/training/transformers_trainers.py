"""Trainers of other libraries, by name: ``transformers.Trainer``, TRL's SFTTrainer and DPOTrainer.

Their libraries are imported when a visit begins (training/transformers_visits.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from transformers import PreTrainedModel

from fullfed.config import LocalTable
from fullfed.data.client_dataset import ClientDataset
from fullfed.data.examples import Example
from fullfed.errors import UserError
from fullfed.training.trainer import LocalResult, VisitContext

# Optimizers of torch.optim that transformers names, and what it calls them.
OPTIMIZERS = {
    "adamw": "adamw_torch_fused",  # their own default
    "adagrad": "adagrad",
    "rmsprop": "rmsprop",
    "sgd": "sgd",
    "adafactor": "adafactor",
}


@dataclass(frozen=True)
class TransformersTraining:
    """``transformers.Trainer`` on the tokenised samples."""

    def __call__(
        self, model: PreTrainedModel, dataset: ClientDataset, context: VisitContext
    ) -> LocalResult:
        from fullfed.training.transformers_visits import train_plainly

        return train_plainly(model, dataset, context)


@dataclass(frozen=True)
class SftTraining:
    """TRL's SFTTrainer on the tokenised samples, masked as ours are."""

    def __call__(
        self, model: PreTrainedModel, dataset: ClientDataset, context: VisitContext
    ) -> LocalResult:
        from fullfed.training.transformers_visits import train_sft

        return train_sft(model, dataset, context)


@dataclass(frozen=True)
class DpoTraining:
    """TRL's DPOTrainer on preferences (Rafailov et al. 2023, arXiv 2305.18290).

    The reference is the model that the visit begins with.

    Attributes:
        beta: how strongly the model is held to the reference.
        loss: of TRL's names.
        label_smoothing (share): of preferences, that may be the wrong way round.
        max_length (tokens): of a prompt with an answer.
    """

    beta: float = 0.1
    loss: Literal["sigmoid", "hinge", "ipo", "robust"] = "sigmoid"
    label_smoothing: float = 0.0
    max_length: int | None = 1024

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError("beta is more than 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError("label_smoothing is at least 0 and less than 0.5")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError("max_length is at least 1")

    def __call__(
        self, model: PreTrainedModel, dataset: ClientDataset, context: VisitContext
    ) -> LocalResult:
        from fullfed.training.transformers_visits import train_dpo

        return train_dpo(
            model,
            dataset,
            context,
            beta=self.beta,
            loss_type=[self.loss],
            label_smoothing=self.label_smoothing,
            max_length=self.max_length,
        )


def check_local(local: LocalTable) -> None:
    """See that transformers has arguments for what a recipe's table asks.

    Raises:
        UserError: it has not.
    """
    if local.optimizer.lower() not in OPTIMIZERS:
        raise UserError(
            f"local.optimizer: transformers' trainers have no {local.optimizer}; choose among "
            f"{', '.join(OPTIMIZERS)}."
        )
    unfit = {
        "momentum": local.momentum is not None,
        "arguments": bool(local.arguments),
        "optimizer_state": local.optimizer_state != "reset",
        "clip_by": local.clip is not None and local.clip_by != "model",
        "micro_batch_size": local.batch_size % (local.micro_batch_size or 1) != 0,
    }
    for key in (key for key, asked in unfit.items() if asked):
        raise UserError(
            f"local.{key}: transformers' trainers have no argument for it as it is; leave it out."
        )


def check_trl_local(local: LocalTable) -> None:
    """The same for TRL's.

    Raises:
        UserError: it has not, or TRL is not installed.
    """
    if find_spec("trl") is None:
        raise UserError(
            'trainer.name: this trainer is TRL\'s; install it with pip install "fullfed[trl]".'
        )
    check_local(local)


def check_preferences(examples: Sequence[Example]) -> None:
    """
    Raises:
        UserError: an example has no answer that is liked less.
    """
    for number, example in enumerate(examples, start=1):
        if not example.rejected:
            raise UserError(
                f"{example.place or f'Example {number}'}: trainer.name: dpo learns from "
                "preferences, and there is no field 'rejected'; take other data, or another "
                "trainer."
            )
