"""Visits that are trained by ``transformers.Trainer``, or by TRL's SFTTrainer and DPOTrainer.

The recipe's table ``local`` becomes their arguments. Weight decay spares biases and norms, and the
warm-up begins at zero, as is usual there.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from fullfed.data.client_dataset import ClientDataset
from fullfed.training.trainer import LocalResult, VisitContext
from fullfed.training.transformers_trainers import OPTIMIZERS


def train_plainly(
    model: PreTrainedModel, dataset: ClientDataset, context: VisitContext
) -> LocalResult:
    """A visit of ``transformers.Trainer``'s."""
    with _arguments(TrainingArguments, model, context) as arguments:
        return LocalResult(
            _trained(
                Trainer(
                    model,
                    arguments,
                    train_dataset=dataset,
                    data_collator=dataset.collate,
                    callbacks=[_Log(context)],
                )
            )
        )


def train_sft(model: PreTrainedModel, dataset: ClientDataset, context: VisitContext) -> LocalResult:
    """A visit of TRL's SFTTrainer."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    names = ("input_ids", "labels")
    rows = [{name: one[name].tolist() for name in names} for one in dataset]
    with _quiet(), _arguments(SFTConfig, model, context, max_length=None) as arguments:
        return LocalResult(
            _trained(
                SFTTrainer(
                    model,
                    args=arguments,
                    train_dataset=Dataset.from_list(rows),
                    processing_class=_padding(dataset),
                    callbacks=[_Log(context)],
                )
            )
        )


def train_dpo(
    model: PreTrainedModel, dataset: ClientDataset, context: VisitContext, **own: Any
) -> LocalResult:
    """A visit of TRL's DPOTrainer.

    Args:
        own: arguments of DPOConfig.
    """
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    with _quiet(), _arguments(DPOConfig, model, context, **own) as arguments:
        trainer = DPOTrainer(
            model,
            ref_model=copy.deepcopy(model).requires_grad_(False),
            args=arguments,
            train_dataset=Dataset.from_list(dataset.records),
            processing_class=_padding(dataset),
            callbacks=[_Log(context)],
        )
        first = next(iter(trainer.get_train_dataloader()))
        loss = _trained(trainer)

    def measure() -> float:
        with torch.no_grad():
            inputs = trainer._prepare_inputs(dict(first))
            return float(trainer.compute_loss(model, inputs))  # type: ignore[no-untyped-call]

    return LocalResult(loss, measure=measure)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, ``datasets`` shows no progress of its own."""
    from datasets.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not quiet:
            enable_progress_bars()


@contextmanager
def _arguments(
    kind: type[Any], model: PreTrainedModel, context: VisitContext, **own: Any
) -> Iterator[Any]:
    """A trainer's arguments by the recipe's tables; its files go into a folder for this while."""
    local = context.local
    micro = local.micro_batch_size or local.batch_size
    with tempfile.TemporaryDirectory() as folder:
        yield kind(
            output_dir=folder,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=local.batch_size // micro,
            max_steps=local.steps or -1,
            num_train_epochs=local.epochs or 1,
            learning_rate=local.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=local.warmup_steps,
            weight_decay=local.weight_decay,
            max_grad_norm=local.clip or 0.0,
            optim=OPTIMIZERS[local.optimizer.lower()],
            bf16=local.precision == "bfloat16",
            tf32=local.precision == "tf32" if model.device.type == "cuda" else None,
            activation_checkpointing=context.memory.checkpoint_activations,
            seed=context.seed,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            **own,
        )


def _trained(trainer: Trainer) -> float:
    """Train; return the mean loss."""
    trainer.remove_callback(PrinterCallback)
    return float(trainer.train().training_loss)


def _padding(dataset: ClientDataset) -> Any:
    """The tokenizer, with a token to pad with, which the masks hide."""
    tokenizer = copy.deepcopy(dataset.tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class _Log(TrainerCallback):
    """Hands the loss of every step on."""

    def __init__(self, context: VisitContext) -> None:
        self._context = context

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._context.log(float(logs["loss"]))
