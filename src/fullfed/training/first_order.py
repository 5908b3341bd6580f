"""First-order local optimisation: a client's steps of SGD or AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.training.checkpointing import checkpointed
from fullfed.training.frozen import training_only
from fullfed.training.layers import find_layers
from fullfed.training.loss import answer_loss
from fullfed.training.memory import PLAIN, Memory, input_cache
from fullfed.training.stepper import Stepper


class TrainingError(Exception):
    """Local training failed; one sentence that quotes no data."""


@dataclass(frozen=True)
class FirstOrder:
    """A client's optimizer, made anew for every visit.

    Attributes:
        optimizer: "sgd" or "adamw", torch's own.
        learning_rate, momentum, weight_decay: as torch's optimizers take them; momentum is
            SGD's, AdamW keeps torch's betas.
        clip: gradients are scaled down to this norm; None for no clipping.
        clip_by: the norm of all gradients of the "model" together, or each "tensor"'s own.
        memory: what of it is traded for what.
    """

    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    clip_by: Literal["model", "tensor"] = "model"
    memory: Memory = PLAIN

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Sequence[Tensor],
        batches: Iterable[Batch],
        loss: Callable[[PreTrainedModel, Batch], Tensor] = answer_loss,
        stepper: Stepper | None = None,
    ) -> list[float]:
        """Take one step a batch on ``parameters``, in place; return each batch's loss.

        The model is in evaluation mode: dropout would draw from a global generator, and
        replicas could not be told from one another by their seeds.

        Args:
            parameters: nothing else gets a gradient, and nothing before them a graph.
            stepper: takes the steps, on the same parameters; None for a new one.

        Raises:
            TrainingError: a loss is not finite.
        """
        model.eval()  # type: ignore[no-untyped-call]
        if stepper is None:
            stepper = self.stepper({str(n): p for n, p in enumerate(parameters)}, {})
        device, losses = parameters[0].device, []
        cache = input_cache(model, parameters, self.memory.cache_inputs)
        with training_only(model, parameters), self._checkpointing(model), stepper:
            for batch in batches:
                with cache.serving(batch) if cache else nullcontext():
                    value = loss(model, batch.to(device))
                    value.backward()  # type: ignore[no-untyped-call]
                stepper.step()
                losses.append(value.detach())
        values: list[float] = torch.stack(losses).tolist()
        if not all(math.isfinite(value) for value in values):
            raise TrainingError(
                "the training loss is not finite; lower local.learning_rate or set local.clip"
            )
        return values

    def stepper(self, parameters: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Stepper:
        """The steps of one visit. ``kept``: the state that an earlier one's stepper ended with."""
        return Stepper(
            parameters,
            self._make,
            self.clip,
            one_by_one=self.memory.optimizer_in_backward,
            clip_each=self.clip_by == "tensor",
            kept=kept,
        )

    def _checkpointing(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        found = find_layers(model) if self.memory.checkpoint_activations else None
        return checkpointed(found[1]) if found else nullcontext()

    def _make(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        # One tensor at a time torch's fused kernels are used: they need no memory of their own.
        fused = True if self.memory.optimizer_in_backward else None
        if self.optimizer == "adamw":
            return torch.optim.AdamW(
                parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused
            )
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=fused,
        )
