"""First-order local optimisation: a client's steps of SGD or AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.training.loss import answer_loss


class TrainingError(Exception):
    """Local training failed; one sentence that quotes no data."""


@dataclass(frozen=True)
class FirstOrder:
    """A client's optimizer, made anew for every visit.

    Attributes:
        optimizer: "sgd" or "adamw", torch's own.
        learning_rate, momentum, weight_decay: as torch's optimizers take them; momentum is
            SGD's, AdamW keeps torch's betas.
        clip: gradients are scaled down to this global norm; None for no clipping.
    """

    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Sequence[Tensor],
        batches: Iterable[Batch],
        loss: Callable[[PreTrainedModel, Batch], Tensor] = answer_loss,
    ) -> list[float]:
        """Take one step a batch on ``parameters``, in place; return each batch's loss.

        The model is in evaluation mode: dropout would draw from a global generator, and
        replicas could not be told from one another by their seeds.

        Raises:
            TrainingError: a loss is not finite.
        """
        model.eval()  # type: ignore[no-untyped-call]
        optimizer = self._make(parameters)
        device = parameters[0].device
        losses = []
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            value = loss(model, batch.to(device))
            value.backward()  # type: ignore[no-untyped-call]
            if self.clip is not None:
                clip_grad_norm_(parameters, self.clip)
            optimizer.step()
            losses.append(value.detach())
        optimizer.zero_grad(set_to_none=True)
        values: list[float] = torch.stack(losses).tolist()
        if not all(math.isfinite(value) for value in values):
            raise TrainingError(
                "the training loss is not finite; lower local.learning_rate or set local.clip"
            )
        return values

    def _make(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(
                parameters, lr=self.learning_rate, weight_decay=self.weight_decay
            )
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
