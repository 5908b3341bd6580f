"""Stochastic rounding by shared randomness: float32 values kept in bfloat16 without bias."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.randomness import Stream
from fullfed.sketch.backends import backend_for
from fullfed.sketch.checks import check_tensors


def round_(
    weights: Sequence[Tensor],
    values: Sequence[Tensor],
    stream: Stream,
    *,
    backend: str | None = None,
) -> None:
    """Each weight becomes one of the two bfloat16 numbers around its value, in place.

    The nearer one is the more probable, so that the mean over streams is the value itself; the
    same stream rounds to the same bits on every device.

    Args:
        weights: contiguous bfloat16 tensors.
        values: float32 tensors of the same shapes.
        stream: fixes the choices; elements are counted over the list.

    Raises:
        UserError: tensors that do not match. Nothing has been modified then.
    """
    check_tensors(weights, values)
    for number, (weight, value) in enumerate(zip(weights, values, strict=True)):
        if weight.dtype != torch.bfloat16 or value.dtype != torch.float32:
            raise UserError(
                f"tensor {number} is {weight.dtype} to be rounded from {value.dtype}; "
                "stochastic rounding is of bfloat16 from float32."
            )
    kernels = backend_for(weights[0].device, backend)
    offset = 0
    for weight, value in zip(weights, values, strict=True):
        flat = weight.detach().view(-1)
        if flat.numel():
            kernels.round_to(flat, value.detach().contiguous().view(-1), stream, offset)
        offset += flat.numel()
