"""Bad input, refused before anything is modified."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch.codes import LARGEST_SCALE, Coded, scales_fit
from fullfed.sketch.scales import Scales
from fullfed.sketch.segments import SERIAL

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_tensors(
    tensors: Sequence[Tensor],
    before: Sequence[Tensor] | None = None,
    scales: Scales | None = None,
) -> int:
    """The number of elements in all, or UserError if the tensors cannot be sketched together."""
    if not tensors:
        raise UserError("a sketch needs at least one tensor; the list given is empty.")
    elements, device = 0, tensors[0].device
    for number, tensor in enumerate(tensors):
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"tensor {number} is {tensor.dtype}; a sketch takes float32, bfloat16 or float16."
            )
        if tensor.device != device:
            raise UserError(
                f"tensor {number} is on {tensor.device} and tensor 0 on {device}; "
                "all must be on one device."
            )
        elements += tensor.numel()
    if before is not None:
        _check_pairs(tensors, before)
    if scales is not None:
        scales.check(tensors)
    return elements


def _check_pairs(tensors: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    if len(before) != len(tensors):
        raise UserError(f"{len(tensors)} tensors after training but {len(before)} before.")
    check_tensors(before)
    for number, (new, old) in enumerate(zip(tensors, before, strict=True)):
        if new.shape != old.shape or new.device != old.device:
            raise UserError(
                f"tensor {number} is {tuple(new.shape)} on {new.device} after training but "
                f"{tuple(old.shape)} on {old.device} before."
            )


def check_coordinates(
    expected: int, values: Tensor | Coded | None = None, device: torch.device | None = None
) -> None:
    """A basis needs at least one coordinate, and as many values, finite float32, as it has."""
    if expected < 1:
        raise UserError(f"{expected} coordinates; a basis needs at least 1.")
    if values is None:
        return
    if isinstance(values, Coded):
        _check_coded(expected, values)
        return
    if values.shape != (expected,):
        raise UserError(
            f"coordinates of shape {tuple(values.shape)} for a basis of {expected}; "
            "send one number per coordinate."
        )
    if values.dtype != torch.float32 or values.device != device:
        raise UserError(
            f"coordinates are {values.dtype} on {values.device}; expected float32 on {device}."
        )
    check_finite(values, "the coordinates to reconstruct from")


def _check_coded(expected: int, values: Coded) -> None:
    if values.count != expected:
        raise UserError(f"{values.count} coded coordinates for a basis of {expected}.")
    if not scales_fit(values.scales):
        raise UserError(f"scales of coded coordinates are not all from 0 to {LARGEST_SCALE:g}.")


def check_finite(values: Tensor, what: str) -> Tensor:
    """The values, or UserError, whose sentence begins with ``what``, if any is not finite."""
    if not is_finite(values):
        raise UserError(
            f"{what} is not finite in float32; lower the learning rate or check the data."
        )
    return values


def is_finite(values: Tensor) -> bool:
    """Whether all of them are, of any dtype."""
    if not values.is_floating_point():
        return True
    ours = values.device.type == "cpu" and values.dtype == torch.float32 and values.is_contiguous()
    if ours and values.numel() > SERIAL:  # torch would wake its threads, which spin on into ours
        from fullfed.sketch import cpu  # imports numba

        return cpu.is_finite(values)
    return not values.numel() or bool(torch.stack(torch.aminmax(values)).isfinite().all())


def check_scale(scale: float) -> float:
    """The nearest float32, or UserError if the scale is not finite in it."""
    nearest = ctypes.c_float(scale).value
    if not math.isfinite(nearest):
        raise UserError(f"scale is {scale}; expected a finite float32.")
    return nearest


def check_start(start: int) -> None:
    """UserError if the number of a first element is negative."""
    if start < 0:
        raise UserError(f"start is {start}; elements are numbered from 0.")
