"""Bad input, refused before anything is modified."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch.generator import SPECIFICATION
from fullfed.sketch.pieces import SERIAL


def check_specification(version: int) -> None:
    """UserError unless ``version`` of docs/shared-randomness.md is the one spoken here."""
    if version != SPECIFICATION:
        raise UserError(
            f"shared randomness of version {version}, but this fullfed speaks version "
            f"{SPECIFICATION}; use the fullfed the run was started with."
        )


def check_coordinates(
    expected: int, values: Tensor | None = None, device: torch.device | None = None
) -> None:
    """A basis needs at least one coordinate, and as many values, finite float32, as it has."""
    if expected < 1:
        raise UserError(f"{expected} coordinates; a basis needs at least 1.")
    if values is None:
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


def check_finite(values: Tensor, what: str) -> Tensor:
    parts = torch.split(values, SERIAL) if values.device.type == "cpu" else (values,)
    extremes = torch.stack([end for part in parts for end in torch.aminmax(part)])
    if not bool(torch.isfinite(extremes).all()):  # they are NaN if any value is
        raise UserError(
            f"{what} is not finite in float32; lower the learning rate or check the data."
        )
    return values


def check_scale(scale: float) -> np.float32:
    if not math.isfinite(scale) or abs(scale) > float(np.finfo(np.float32).max):
        raise UserError(f"scale is {scale}; expected a finite float32.")
    return np.float32(scale)


def check_start(start: int) -> None:
    if start < 0:
        raise UserError(f"start is {start}; elements are numbered from 0.")


def factors(values: Sequence[float] | None, tensors: int) -> list[float]:
    """One float32 per tensor, as Python floats; all 1 when none are given."""
    if values is None:
        return [1.0] * tensors
    rounded = [float(np.float32(value)) for value in values]
    if len(rounded) != tensors or not all(math.isfinite(value) for value in rounded):
        raise UserError(
            f"{len(rounded)} weights for {tensors} tensors; give one finite number each."
        )
    return rounded
