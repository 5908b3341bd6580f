"""Tensors of any strides in row-major order, a stretch of elements at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

SERIAL = 1 << 15  # torch parallelises element-wise work on the CPU above this many elements


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """start:stop cut every ``step``."""
    for low in range(start, stop, step):
        yield slice(low, min(low + step, stop))


Box: TypeAlias = tuple[int | slice, ...]


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Indices that hold the elements start, ..., stop - 1 of a shape, one after another."""
    if len(shape) < 2:
        yield (slice(start, stop),) if shape else ()
        return
    inner = math.prod(shape[1:])
    (first, skipped), (last, taken) = divmod(start, inner), divmod(stop, inner)
    if first == last:
        yield from _within(first, shape, skipped, taken)
        return
    if skipped:
        yield from _within(first, shape, skipped, inner)
        first += 1
    if first < last:
        yield (slice(first, last),)
    if taken:
        yield from _within(last, shape, 0, taken)


def _within(number: int, shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    for box in boxes(shape[1:], start, stop):
        yield (number, *box)


def elements(tensor: Tensor, start: int, stop: int) -> Tensor:
    """The elements start, ..., stop - 1, shape (stop - start,): a view if contiguous, else new."""
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    return joined([tensor[box] for box in boxes(tensor.shape, start, stop)])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The elements of all parts in one row."""
    return (
        torch.cat([part.reshape(-1) for part in parts]) if len(parts) > 1 else parts[0].reshape(-1)
    )


def assign(tensor: Tensor, start: int, values: Tensor) -> None:
    """Elements start, start + 1, ... become ``values``, rounded to the tensor's dtype."""
    if tensor.is_contiguous():
        tensor.view(-1)[start : start + values.numel()] = values
        return
    place = 0
    for box in boxes(tensor.shape, start, start + values.numel()):
        section = tensor[box]
        section.copy_(values[place : place + section.numel()].view(section.shape))
        place += section.numel()
