"""A public number for each element, multiplied in before a projection and after reconstruction."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch.checks import float32, largest
from fullfed.sketch.strided import boxes, joined

Weight: TypeAlias = float | Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ElementWeight:
    """fl(scale * fl(the product of the views)) for each element, never held for all at once.

    Attributes:
        views: one or two float32 tensors, expanded to the shape of the tensor they weight.
        scale: a float32.
    """

    views: tuple[Tensor, ...]
    scale: float = 1.0

    def part(self, start: int, stop: int) -> Tensor:
        """The numbers of elements start, ..., stop - 1 in row-major order, float32."""
        shape = self.views[0].shape
        product = joined(
            [
                functools.reduce(torch.mul, (view[box] for view in self.views))
                for box in boxes(shape, start, stop)
            ]
        )
        return product if self.scale == 1.0 else product * self.scale


Factor: TypeAlias = float | ElementWeight  # as the kernels' callers see a Weight


def factors(
    weights: Sequence[Weight] | None, tensors: Sequence[Tensor], scale: float = 1.0
) -> list[Factor]:
    """fl(scale * weight) for each tensor; every weight is 1 when none are given.

    Raises:
        UserError: not one weight per tensor, one whose shape does not fit its tensor, that is not
            float32 on the tensor's device, or a product with ``scale`` that is not finite.
    """
    if weights is None:
        return [scale] * len(tensors)
    if len(weights) != len(tensors):
        raise UserError(f"{len(weights)} weights for {len(tensors)} tensors; give one each.")
    return [
        _factor(weight, tensor, scale, number)
        for number, (weight, tensor) in enumerate(zip(weights, tensors, strict=True))
    ]


def _factor(weight: Weight, tensor: Tensor, scale: float, number: int) -> Factor:
    if not isinstance(weight, tuple | Tensor):
        factor = float32(scale * float32(weight))
        _check(math.isfinite(factor), number, f"{weight} is not finite in float32")
        return factor
    given = weight if isinstance(weight, tuple) else (weight,)
    for part in given:
        _check(part.dtype == torch.float32, number, f"it is {part.dtype}, not float32")
        _check(part.device == tensor.device, number, f"it is on {part.device}")
    views = _expanded(given, tensor.shape)
    shapes = " and ".join(str(tuple(part.shape)) for part in given)
    _check(bool(views), number, f"{shapes} does not fit the tensor's {tuple(tensor.shape)}")
    size = float32(math.prod(largest(part) for part in given))
    _check(math.isfinite(float32(scale * size)), number, "it is not finite in float32")
    return ElementWeight(views, scale)


def _expanded(given: tuple[Tensor, ...], shape: torch.Size) -> tuple[Tensor, ...]:
    """Views of the tensor's shape, or none if what was given does not fit it."""
    if len(given) == 2:
        row, column = given
        if len(shape) != 2 or row.shape != shape[:1] or column.shape != shape[1:]:
            return ()
        return row[:, None].expand(shape), column.expand(shape)
    try:
        return tuple(part.expand(shape) for part in given)
    except RuntimeError:  # torch's word for a shape that does not broadcast
        return ()


def _check(holds: bool, number: int, fault: str) -> None:
    if not holds:
        raise UserError(f"weight {number} cannot be used: {fault}.")
