"""Tensors of any strides in row-major order, a stretch of elements at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SERIAL = 1 << 15  # torch parallelises element-wise work on the CPU above this many elements


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """start:stop cut every ``step``."""
    for low in range(start, stop, step):
        yield slice(low, min(low + step, stop))


def sections(tensor: Tensor, start: int, stop: int) -> Iterator[Tensor]:
    """Views that hold the elements start, ..., stop - 1, one after another; start < stop."""
    if tensor.is_contiguous():
        yield tensor.view(-1)[start:stop]
    elif tensor.dim() == 1:
        yield tensor[start:stop]
    else:
        inner = tensor[0].numel()
        (first, skipped), (last, taken) = divmod(start, inner), divmod(stop, inner)
        if first == last:
            yield from sections(tensor[first], skipped, taken)
            return
        if skipped:
            yield from sections(tensor[first], skipped, inner)
            first += 1
        if first < last:
            yield tensor[first:last]
        if taken:
            yield from sections(tensor[last], 0, taken)


def elements(tensor: Tensor, start: int, stop: int) -> Tensor:
    """The elements start, ..., stop - 1, shape (stop - start,): a view if contiguous, else new."""
    parts = [section.reshape(-1) for section in sections(tensor, start, stop)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def assign(tensor: Tensor, start: int, values: Tensor) -> None:
    """Elements start, start + 1, ... become ``values``, rounded to the tensor's dtype."""
    place = 0
    for section in sections(tensor, start, start + values.numel()):
        section.copy_(values[place : place + section.numel()].view(section.shape))
        place += section.numel()
