"""Random directions over a model, for zeroth-order methods: one, or the sum of many in one pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.randomness import Stream
from fullfed.sketch.backends import Direction, Rows, backend_for
from fullfed.sketch.checks import check_scale, check_start, check_tensors
from fullfed.sketch.entries import NORMALS, SIGNS
from fullfed.sketch.layout import LANES
from fullfed.sketch.pieces import Rounding, rounding_noise, writable

Distribution = Literal["rademacher", "gaussian"]


def perturb_(
    weights: Sequence[Tensor],
    stream: Stream,
    scale: float,
    distribution: Distribution = "rademacher",
    *,
    start: int = 0,
    rounding: Rounding = "nearest",
    backend: str | None = None,
) -> None:
    """w = fl(w + fl(scale * z)) in place, z one direction over all elements in list order.

    z has independent entries, +-1 (``rademacher``) or standard normal (``gaussian``).

    Args:
        weights: float32, bfloat16 or float16 tensors; 16-bit ones are widened and rounded back.
        stream: what z is made of.
        scale: rounded to float32 once.
        distribution: of the entries of z.
        start: the number, within z, of the first element of ``weights``: a model perturbed
            tensor by tensor, each from where the last ended, is the model perturbed at once.
        rounding: of bfloat16 weights; "stochastic" draws on a stream of the same seed, round and
            owner, so that perturbing twice by one stream rounds twice the same way.
        backend: "reference", "numba" or "triton"; by default the device's own.

    Raises:
        UserError: a scale that is not finite, a negative start, or tensors that cannot be
            perturbed together.
    """
    if distribution == "gaussian":
        accumulate_(
            weights,
            [stream],
            [scale],
            distribution,
            start=start,
            rounding=rounding,
            backend=backend,
        )
        return
    check_tensors(weights)
    check_start(start)
    factors = [check_scale(scale)] * len(weights)
    kernels = backend_for(weights[0].device, backend)
    noise = rounding_noise(rounding, stream, start)
    for pieces in writable(weights, factors, kernels, noise, start):
        kernels.add_reconstruction(Rows(LANES, stream, None), pieces, _ones(weights[0].device))


def accumulate_(
    weights: Sequence[Tensor],
    streams: Sequence[Stream],
    scalars: Sequence[float],
    distribution: Distribution = "rademacher",
    *,
    start: int = 0,
    rounding: Rounding = "nearest",
    backend: str | None = None,
) -> None:
    """w = fl(w + u) in place with u = sum over j in order of fl(scalars[j] * z_j), from zero.

    One pass over the weights however many directions there are. Arguments as for ``perturb_``;
    stochastic rounding draws on the seed, round and owner of the first stream.

    Raises:
        UserError: as ``perturb_``, or not one scalar per stream. Nothing has been modified then.
    """
    check_tensors(weights)
    check_start(start)
    if len(streams) != len(scalars):
        raise UserError(f"{len(scalars)} scalars for {len(streams)} directions.")
    device = weights[0].device
    numbers = np.array([check_scale(scalar) for scalar in scalars], dtype=np.float32)
    values = torch.from_numpy(numbers).to(device)
    entries = NORMALS if distribution == "gaussian" else SIGNS
    kernels = backend_for(device, backend)
    directions = [Direction(stream, 0) for stream in streams]
    noise = rounding_noise(rounding, streams[0], start) if streams else None
    for pieces in writable(weights, [1.0] * len(weights), kernels, noise, start):
        kernels.add_combination(entries, directions, values, pieces)


@functools.cache
def _ones(device: torch.device) -> Tensor:
    return torch.ones(LANES, dtype=torch.float32, device=device)
