"""Random directions over a model, for zeroth-order methods: one, or the sum of many in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch.backends import Direction, Rows, backend_for
from fullfed.sketch.checks import check_scale, check_start
from fullfed.sketch.entries import NORMALS, SIGNS
from fullfed.sketch.generator import Stream
from fullfed.sketch.layout import LANES
from fullfed.sketch.pieces import add_, check_tensors, writable

Distribution = Literal["rademacher", "gaussian"]
STRETCH = 1 << 18  # elements whose sum of directions is held at once


def perturb_(
    weights: Sequence[Tensor],
    stream: Stream,
    scale: float,
    distribution: Distribution = "rademacher",
    *,
    start: int = 0,
    backend: str | None = None,
) -> None:
    """w = fl(w + fl(scale * z)) in place, z one direction over all elements in list order.

    z has independent entries, +-1 (``rademacher``) or standard normal (``gaussian``). Weights
    are float32, bfloat16 or float16; 16-bit ones are widened and rounded back to nearest even.
    ``start`` is the number, within z, of the first element of ``weights``: a model perturbed
    tensor by tensor, each from where the last ended, is the model perturbed at once.

    Raises:
        UserError: a scale that is not finite, a negative start, or tensors that cannot be
            perturbed together.
    """
    if distribution == "gaussian":
        accumulate_(weights, [stream], [scale], distribution, start=start, backend=backend)
        return
    check_tensors(weights)
    check_start(start)
    step, ones = float(check_scale(scale)), torch.ones(LANES, device=weights[0].device)
    kernels = backend_for(weights[0].device, backend)
    for _, offset, row in writable(weights, kernels):
        kernels.add_reconstruction(Rows(LANES, stream, None), row, start + offset, ones, step)


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
    check_tensors(weights)
    check_start(start)
    if len(streams) != len(scalars):
        raise UserError(f"{len(scalars)} scalars for {len(streams)} directions.")
    device = weights[0].device
    values = torch.tensor([float(check_scale(scalar)) for scalar in scalars], device=device)
    entries = NORMALS if distribution == "gaussian" else SIGNS
    kernels = backend_for(device, backend)
    for _, offset, row in writable(weights, kernels, step=STRETCH):
        first, skipped = divmod(start + offset, LANES)
        directions = [Direction(stream, first) for stream in streams]
        sums = torch.empty(-(-(skipped + row.numel()) // LANES), LANES, device=device)
        kernels.combine(entries, directions, values, sums)
        add_(row, sums.view(-1)[skipped:], 1.0)
