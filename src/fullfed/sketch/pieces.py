"""Seeing a list of tensors as one long row of float32 elements, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fullfed.errors import UserError

PIECE = 1 << 20  # elements widened to float32 at once
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


def read(flat: Tensor, before: Tensor | None, weight: float, start: int, stop: int) -> Tensor:
    """Elements start:stop as float32: fl(weight * fl(after - before)); a view where nothing changes."""
    piece = flat[start:stop].float()
    if before is not None:
        piece = piece - before[start:stop].float()
    return piece if weight == 1.0 else piece * weight


def readable_pieces(
    tensors: Sequence[Tensor], before: Sequence[Tensor] | None, weights: Sequence[float]
) -> Iterator[tuple[int, Tensor]]:
    """Pairs (global index of its first element, flat float32 piece), in order."""
    offset = 0
    for number, tensor in enumerate(tensors):
        flat = tensor.detach().contiguous().view(-1)
        old = None if before is None else before[number].detach().contiguous().view(-1)
        untouched = flat.dtype == torch.float32 and old is None and weights[number] == 1.0
        step = flat.numel() if untouched else PIECE
        for start in range(0, flat.numel(), max(step, 1)):
            yield offset + start, read(flat, old, weights[number], start, start + step)
        offset += flat.numel()


def writable_pieces(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int, Tensor]]:
    """Triples (tensor number, global index, flat float32 piece); what the caller writes is kept.

    A 16-bit piece is widened, handed over and rounded back to nearest even.
    """
    offset = 0
    for number, tensor in enumerate(tensors):
        owned = tensor.detach()
        flat = owned.contiguous().view(-1)
        step = flat.numel() if flat.dtype == torch.float32 else PIECE
        for start in range(0, flat.numel(), max(step, 1)):
            kept = flat[start : start + step]
            piece = kept.float()
            yield number, offset + start, piece
            if piece.dtype != kept.dtype:
                kept.copy_(piece)
        if not owned.is_contiguous():
            owned.copy_(flat.view(owned.shape))
        offset += flat.numel()
