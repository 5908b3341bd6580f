"""What benchmarks/training.py compares: a visit, plain loops, and transformers' Trainer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from fullfed.config import FederationTable, LocalTable, MemoryTable
from fullfed.data.batches import Batch, training_batches
from fullfed.data.tokens import TokenizedExample
from fullfed.methods import fedavg
from fullfed.methods.composition import Composition
from fullfed.methods.setting import Setting
from fullfed.randomness import Purpose, Stream
from fullfed.training.loss import answer_loss
from fullfed.training.precision import autocast

DTYPES = {"float32": "float32", "autocast": "float32", "bfloat16 weights": "bfloat16"}
_RATE, _CLIP = 2e-5, 1.0


@dataclass
class Task:
    """One model in one precision, and what it is trained on.

    Attributes:
        start: the weights that everybody begins with.
        examples: of one client.
        batches: what a visit makes of them.
    """

    model: PreTrainedModel
    precision: str
    steps: int
    batch: int
    examples: list[TokenizedExample]
    start: list[Tensor] = field(init=False)
    batches: list[Batch] = field(init=False)

    def __post_init__(self) -> None:
        self.start = [p.detach().clone() for p in self.model.parameters()]
        self.batches = list(
            training_batches(
                self.examples, self.batch, self.steps, Stream(0, Purpose.BATCHES, 0, 0)
            )
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def tokens(self) -> int:
        return sum(int(batch.attention_mask.sum()) for batch in self.batches)

    @property
    def answers(self) -> int:
        return sum(batch.tokens for batch in self.batches)

    @property
    def padding(self) -> float:
        """The share of positions that hold no token."""
        return 1 - self.tokens / sum(batch.input_ids.numel() for batch in self.batches)

    @property
    def local(self) -> LocalTable:
        return LocalTable(
            optimizer="adamw",
            learning_rate=_RATE,
            clip=_CLIP,
            steps=self.steps,
            batch_size=self.batch,
            precision="bfloat16" if self.precision == "autocast" else "float32",
        )

    def method(self, build: Callable[[Setting], Composition]) -> Composition:
        return build(
            Setting(
                federation=FederationTable(rounds=1, clients_per_round=1),
                local=self.local,
                memory=MemoryTable(),
                clients=1,
                shapes={name: p.shape for name, p in self.model.named_parameters()},
            )
        )

    def restore(self) -> None:
        self.model.requires_grad_(True)
        self.model.eval()
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), self.start, strict=True):
                parameter.copy_(value)
                parameter.grad = None

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def build_fedavg(setting: Setting) -> Composition:
    return fedavg.build(setting, fedavg.FedAvgOptions())


# The contenders: each trains on all batches once and returns its seconds


def visit(task: Task) -> float:
    method = task.method(build_fedavg)
    (plan,) = method.plans(0, None)
    began = task.now()
    done = method.train(task.model, plan, task.examples, None)
    return task.now() - began - done.encode_seconds


def loop(task: Task) -> float:
    return _loop(task, answer_loss)


def loop_of_all_logits(task: Task) -> float:
    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        value: Tensor = model(**inputs, labels=batch.labels, use_cache=False).loss
        return value

    return _loop(task, loss)


def _loop(task: Task, loss: Callable[[PreTrainedModel, Batch], Tensor]) -> float:
    began = task.now()
    parameters = list(task.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=0.0)
    for batch in task.batches:
        with autocast(task.local.precision, task.device):
            value = loss(task.model, batch.to(task.device))
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return task.now() - began


class Stopwatch(TrainerCallback):
    def __init__(self, task: Task) -> None:
        self.task, self.began, self.ended = task, 0.0, 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = self.task.now()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.ended = self.task.now()


def trainer(task: Task) -> float:
    watch = Stopwatch(task)
    rows = [
        {"input_ids": b.input_ids, "attention_mask": b.attention_mask, "labels": b.labels}
        for b in task.batches
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,  # of rows, which are batches
            max_steps=task.steps,
            learning_rate=_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=_CLIP,
            optim="adamw_torch",
            bf16=task.precision == "autocast",
            use_cpu=task.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            train_sampling_strategy="sequential",
            disable_tqdm=True,
        )
        work = Trainer(
            model=task.model,
            args=arguments,
            train_dataset=rows,
            data_collator=lambda one: one[0],
            callbacks=[watch],
        )
        work.remove_callback(PrinterCallback)
        work.train()
    return watch.ended - watch.began


CONTENDERS = {
    "visit": visit,
    "loop": loop,
    "loop, all logits": loop_of_all_logits,
    "Trainer": trainer,
}
