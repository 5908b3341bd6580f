"""Zeroth-order estimation: a model's loss a small way off its weights, which stay untouched.

MeZO (Malladi et al. 2023, arXiv 2305.17333, Algorithm 1) adds a perturbation to the weights and
takes it away again, and so drifts by rounding errors. Here each part of the model computes with a
perturbed copy of its weights: no drift, in the memory of inference and the largest part, or the
largest part and the weights that are tied between parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.sketch import Stream, perturb_
from fullfed.sketch.directions import Distribution
from fullfed.training.copies import Memory
from fullfed.training.first_order import TrainingError
from fullfed.training.loss import answer_loss
from fullfed.training.parts import moved, parts_of

_STRETCH = 1 << 18  # numbers of a direction held at once ...
_LANES = 128  # ... and summed by torch; the sums of these are added exactly


@dataclass(frozen=True)
class Direction:
    """z: one random number for each element of a list of tensors.

    Attributes:
        stream: fixes z.
        distribution: "rademacher" (signs) or "gaussian".
    """

    stream: Stream
    distribution: Distribution


class Neighbourhood:
    """Losses of a model at points near its weights.

    Args:
        model: in evaluation mode from now on.
        parameters: those to move, by name; their order numbers the elements of directions.
        loss: of a batch, float32.

    Attributes:
        elements: of the parameters, d.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        loss: Callable[[PreTrainedModel, Batch], Tensor] = answer_loss,
    ) -> None:
        model.eval()  # type: ignore[no-untyped-call]
        self._model, self._loss = model, loss
        self.elements = sum(p.numel() for p in parameters.values())
        self._parts, self._memory = parts_of(model, list(parameters.values())), Memory()

    def here(self, batch: Batch) -> float:
        """The loss at the weights.

        Raises:
            TrainingError: it is not finite.
        """
        return _finite(self._value(batch))

    def at(self, batch: Batch, direction: Direction, scale: float) -> float:
        """The loss at fl(w + fl(scale * z)).

        Raises:
            TrainingError: it is not finite.
        """

        def move(row: Tensor, start: int) -> None:
            perturb_([row], direction.stream, scale, direction.distribution, start=start)

        with moved(self._parts, move, self._memory):
            value = self._value(batch)
        if not math.isfinite(value):
            self._check_readable(batch)
        return _finite(value)

    def derivative(
        self, batch: Batch, direction: Direction, distance: float
    ) -> tuple[float, float]:
        """The mean of the losses at w + distance * z and w - distance * z, and the derivative
        along z that follows from them, float32 (two-sided SPSA: Spall 1992).

        Raises:
            TrainingError: a loss is not finite.
        """
        ahead = self.at(batch, direction, distance)
        behind = self.at(batch, direction, -distance)
        return (ahead + behind) / 2, float(np.float32((ahead - behind) / (2 * distance)))

    def _value(self, batch: Batch) -> float:
        with torch.no_grad():
            return float(self._loss(self._model, batch))

    def _check_readable(self, batch: Batch) -> None:
        with moved(self._parts, lambda row, start: None, self._memory):
            unmoved = self._value(batch)
        if math.isfinite(self._value(batch)) and not math.isfinite(unmoved):
            raise TrainingError(
                "the model reads weights of a module that is not computing, where they cannot be "
                "perturbed; take a method with gradients"
            )


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise TrainingError("the training loss is not finite; lower local.learning_rate")
    return loss


def length(stream: Stream, elements: int, device: torch.device) -> float:
    """The Euclidean norm of a Gaussian direction of so many elements, in float64.

    Made a stretch at a time, in 3 MiB; the sum does not depend on the number of threads.
    """
    squares = []
    for start in range(0, elements, _STRETCH):
        size = min(_STRETCH, elements - start)
        row = torch.zeros(-(-size // _LANES) * _LANES, device=device)
        perturb_([row[:size]], stream, 1.0, "gaussian", start=start)
        squares += row.double().square_().view(-1, _LANES).sum(dim=1).tolist()
    return math.sqrt(math.fsum(squares))
