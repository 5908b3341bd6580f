"""Seeing a list of tensors as one long row of elements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch.backends import Backend
from fullfed.sketch.generator import Purpose, Stream

Rounding = Literal["nearest", "stochastic"]  # of bfloat16 weights
STAGED = 1 << 18  # elements widened to float32 at once for stochastic rounding
SERIAL = 1 << 15  # torch parallelises element-wise work above this many elements
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_tensors(tensors: Sequence[Tensor], before: Sequence[Tensor] | None = None) -> int:
    """The number of elements in all, or UserError if the tensors cannot be sketched together."""
    if not tensors:
        raise UserError("a sketch needs at least one tensor; the list given is empty.")
    for number, tensor in enumerate(tensors):
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"tensor {number} is {tensor.dtype}; a sketch takes float32, bfloat16 or float16."
            )
        if tensor.device != tensors[0].device:
            raise UserError(
                f"tensor {number} is on {tensor.device} and tensor 0 on {tensors[0].device}; "
                "all must be on one device."
            )
    if before is not None:
        _check_pairs(tensors, before)
    return sum(tensor.numel() for tensor in tensors)


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


def flat(tensor: Tensor) -> Tensor:
    """The elements as one contiguous row: a view where possible, else a copy."""
    return tensor.detach().contiguous().view(-1)


def rounding_stream(rounding: Rounding, seed: int, round: int, owner: int) -> Stream | None:
    """The stream that rounds bfloat16 weights, or None for rounding to nearest."""
    return Stream(seed, Purpose.ROUNDING, round, owner) if rounding == "stochastic" else None


def writable(
    tensors: Sequence[Tensor],
    kernels: Backend,
    noise: Stream | None = None,
    step: int | None = None,
) -> Iterator[tuple[int, int, Tensor]]:
    """Triples (tensor number, global index of its first element, flat); what is written is kept.

    Rows are at most ``step`` long. With ``noise`` a bfloat16 row is handed over as float32 and
    rounded stochastically afterwards.
    """
    offset = 0
    for number, tensor in enumerate(tensors):
        row = flat(tensor)
        noisy = noise if row.dtype == torch.bfloat16 else None
        size = max(1, min(step or row.numel(), row.numel() if noisy is None else STAGED))
        for start in range(0, row.numel(), size):
            kept = row[start : start + size]
            if noisy is None:
                yield number, offset + start, kept
            else:
                wide = kept.float()
                yield number, offset + start, wide
                kernels.round_to(kept, wide, noisy, offset + start)
        if not tensor.is_contiguous():
            tensor.detach().copy_(row.view(tensor.shape))
        offset += row.numel()


def zeros(rows: int, columns: int, device: torch.device) -> Tensor:
    """float32 zeros, on the CPU without torch's threads: they would spin on into our kernels."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros((rows, columns), dtype=np.float32))
    return torch.zeros(rows, columns, device=device)


def slices(start: int, stop: int) -> Iterator[slice]:
    """start:stop in pieces so small that torch works on them without waking its own threads."""
    for low in range(start, stop, SERIAL):
        yield slice(low, min(low + SERIAL, stop))


def add_(row: Tensor, change: Tensor, scale: float) -> None:
    """row = fl(row + fl(scale * change)), rounded to the row's dtype; change may be longer."""
    for part in slices(0, row.numel()):
        row[part] = row[part].float() + change[part] * scale
