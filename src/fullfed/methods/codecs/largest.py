"""Which numbers are the largest by absolute value, of all together or of each chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def largest_of_chunks(
    tensors: Sequence[Tensor], count: int, chunk: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of every ``chunk`` numbers in a row the ``count`` of largest absolute value, zeros never; of
    equal ones the first.

    Args:
        tensors: flat, float32, taken as one vector.

    Returns:
        their positions, increasing, and their values.
    """
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    chunk = min(chunk, flat.numel())  # a longer one is all of them, and not worth its padding
    rows = torch.nn.functional.pad(flat, (0, -flat.numel() % chunk)).view(-1, chunk)
    order = rows.abs().sort(dim=1, descending=True, stable=True).indices[:, :count]
    starts = torch.arange(len(rows), device=flat.device).unsqueeze(1) * chunk
    places = (order + starts).flatten().sort().values
    places = places[places < flat.numel()]  # the last chunk may be short
    places = places[flat[places] != 0]
    return places.cpu().numpy(), flat[places].cpu().numpy()


def select_largest(
    tensors: Sequence[Tensor], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``count`` numbers of largest absolute value in flat float32 tensors taken as one vector;
    fewer where the rest is zero, of equal ones the first.

    Returns:
        their positions, increasing, and their values.
    """
    positions, values = _largest(tensors, count)
    return positions.cpu().numpy(), values.cpu().numpy()


def _largest(tensors: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The same on the tensors' device.

    The smallest of them is found in two passes over the bits of all, upper and lower halves.
    """
    threshold = above = 0
    for shift in (16, 0):
        counts = torch.zeros(1 << 16, dtype=torch.int64, device=tensors[0].device)
        for size in map(_size, tensors):
            inside = size if shift else size[size >> 16 == threshold]
            counts += torch.bincount(inside >> shift & 0xFFFF, minlength=1 << 16)
        counts = counts.cpu()
        from_top = counts.flip(0).cumsum(0)
        place = min(int(torch.searchsorted(from_top, count - above)), 0xFFFF)
        threshold = threshold << 16 | 0xFFFF - place
        above += int(from_top[place] - counts[0xFFFF - place])
    positions, values, start, ties = [], [], 0, count - above
    for tensor in tensors:
        size = _size(tensor)
        equal = (size == threshold).nonzero().flatten()[: ties if threshold else 0]
        ties -= len(equal)
        found = torch.cat([(size > threshold).nonzero().flatten(), equal]).sort().values
        positions.append(found + start)
        values.append(tensor[found])
        start += tensor.numel()
    return torch.cat(positions), torch.cat(values)


def _size(tensor: Tensor) -> Tensor:
    """Absolute values as integers of the same order."""
    return tensor.view(torch.int32) & 0x7FFFFFFF


def kept_of(share: float, numbers: int) -> int:
    """A share of numbers, rounded down, but at least one."""
    return max(int(numbers * share), 1)


@contextmanager
def largest_alone(tensors: Sequence[Tensor], share: float) -> Iterator[None]:
    """Inside, all numbers but a share of them, the largest, are 0; afterwards they are what they
    were, bit for bit."""
    if share == 1.0:
        yield
        return
    whole = [tensor.clone() for tensor in tensors]
    flat = [tensor.float().reshape(-1) for tensor in whole]
    count = sum(tensor.numel() for tensor in flat)
    kept = torch.zeros(count, dtype=torch.bool, device=flat[0].device)
    kept[_largest(flat, kept_of(share, count))[0]] = True
    start = 0
    try:
        for tensor in tensors:
            own = kept[start : start + tensor.numel()].view(tensor.shape)
            start += tensor.numel()
            tensor.mul_(own)
        yield
    finally:
        for tensor, before in zip(tensors, whole, strict=True):
            tensor.copy_(before)
