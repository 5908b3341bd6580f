"""Random directions over a model, for zeroth-order methods; stochastic rounding and dither."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.randomness import Stream
from fullfed.sketch.backends import DirectionRows, Rows, backend_for
from fullfed.sketch.checks import check_scale, check_start, check_tensors
from fullfed.sketch.entries import LANES, NORMALS, SIGNS
from fullfed.sketch.scales import Scales
from fullfed.sketch.segments import writable
from fullfed.sketch.shards import LocalTensors

Distribution = Literal["rademacher", "gaussian"]

# The last bits of a float32 that a 16-bit type has not.
_DROPPED = {torch.bfloat16: 16, torch.float16: 13}


def perturb_(
    weights: Sequence[Tensor],
    stream: Stream,
    scale: float,
    distribution: Distribution = "rademacher",
    *,
    start: int = 0,
    scales: Scales | None = None,
    backend: str | None = None,
) -> None:
    """w = fl(w + fl(scale * z)) in place, z one direction over all elements in list order.

    z has independent entries, +-1 (``rademacher``) or standard normal (``gaussian``). With scales
    w = fl(w + fl(fl(scale * z) * factor)).

    Args:
        weights: float32, bfloat16 or float16 tensors; 16-bit ones are widened and rounded back.
            Sharded ones get the same numbers, bit for bit, as whole ones.
        stream: what z is made of.
        scale: rounded to float32 once.
        distribution: of the entries of z.
        start: the number, within z, of the first element of ``weights``: a model perturbed
            tensor by tensor, each from where the last ended, is the model perturbed at once.
        scales: of ``weights``: for part of a model, of this part (``scales[2:3]`` of one tensor).
        backend: "reference", "numba" or "triton"; by default the device's own.

    Raises:
        UserError: a scale that is not finite, a negative start, tensors that cannot be
            perturbed together, or scales that do not match.
    """
    if distribution == "gaussian":
        _accumulate(weights, [stream], [scale], distribution, start, scales, backend)
        return
    check_tensors(weights, scales=scales)
    check_start(start)
    factor, kernels = check_scale(scale), backend_for(weights[0].device, backend)
    here = LocalTensors.of(weights, start)
    for segments in writable(here, factor, here.scales(scales), scaled=kernels.SCALED):
        kernels.add_reconstruction(Rows(LANES, stream, None), segments, _ones(weights[0].device))


def accumulate_(
    weights: Sequence[Tensor],
    streams: Sequence[Stream],
    scalars: Sequence[float],
    distribution: Distribution = "rademacher",
    *,
    start: int = 0,
    backend: str | None = None,
) -> None:
    """w = fl(w + u) in place with u = sum over j in order of fl(scalars[j] * z_j), from zero.

    One pass over the weights however many directions there are. Arguments as for ``perturb_``.

    Raises:
        UserError: as ``perturb_``, or not one scalar per stream. Nothing has been modified then.
    """
    _accumulate(weights, streams, scalars, distribution, start, None, backend)


def _accumulate(
    weights: Sequence[Tensor],
    streams: Sequence[Stream],
    scalars: Sequence[float],
    distribution: Distribution,
    start: int,
    scales: Scales | None,
    backend: str | None,
) -> None:
    """w = fl(w + u), or fl(w + fl(u * factor)), u as ``accumulate_`` says."""
    check_tensors(weights, scales=scales)
    check_start(start)
    if len(streams) != len(scalars):
        raise UserError(f"{len(scalars)} scalars for {len(streams)} directions.")
    device = weights[0].device
    numbers = np.array([check_scale(scalar) for scalar in scalars], dtype=np.float32)
    values = torch.from_numpy(numbers).to(device)
    entries = NORMALS if distribution == "gaussian" else SIGNS
    kernels = backend_for(device, backend)
    directions = [DirectionRows(stream, 0) for stream in streams]
    here = LocalTensors.of(weights, start)
    for segments in writable(here, 1.0, here.scales(scales), scaled=kernels.SCALED):
        kernels.add_combination(entries, directions, values, segments)


def round_(
    weights: Sequence[Tensor],
    values: Sequence[Tensor],
    stream: Stream,
    *,
    backend: str | None = None,
) -> None:
    """Each weight becomes one of the two bfloat16 numbers around its value, in place.

    The nearer one is the more probable, so that the mean over streams is the value itself. The
    same stream rounds to the same bits on every device (docs/shared-randomness.md, section 7).

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
    here, exact = LocalTensors.of(weights), LocalTensors.of(values).tensors
    for weight, value, offset in zip(here.tensors, exact, here.offsets, strict=True):
        if weight.numel():
            kernels.round_to(weight.view(-1), value.contiguous().view(-1), stream, offset)


def dither_(
    values: Sequence[Tensor],
    dtype: torch.dtype,
    stream: Stream,
    *,
    backend: str | None = None,
) -> None:
    """Each number of a 16-bit type becomes a random one of the float32 numbers that round to it.

    It is uniform on what rounds to the number (but the ends of that), so that small changes
    arrive on average when it is rounded again: E[round(value + change)] = value + change, where
    rounding to nearest would lose every change below half a step of the type. Zeros stay zero.
    The same stream gives the same bits on every device (docs/shared-randomness.md, section 7).

    Args:
        values: contiguous float32 tensors that hold numbers of ``dtype``, changed in place.
        dtype: bfloat16 or float16.
        stream: fixes the choices; elements are counted over the list.

    Raises:
        UserError: other types. Nothing has been modified then.
    """
    check_tensors(values)
    if dtype not in _DROPPED or any(value.dtype != torch.float32 for value in values):
        raise UserError("dither is of float32 tensors that hold numbers in 16 bits.")
    kernels = backend_for(values[0].device, backend)
    here = LocalTensors.of(values)
    for value, offset in zip(here.tensors, here.offsets, strict=True):
        if value.numel():
            kernels.dither(value.view(-1), stream, offset, _DROPPED[dtype])


@functools.cache
def _ones(device: torch.device) -> Tensor:
    """A row's coordinates, so that a direction of signs is a sign basis of LANES coordinates."""
    return torch.ones(LANES, dtype=torch.float32, device=device)
