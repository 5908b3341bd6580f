"""A random rotation of a vector, after which its entries look like draws of one normal law."""

from __future__ import annotations

import torch
from torch import Tensor

from fullfed.sketch.directions import perturb_
from fullfed.sketch.generator import Stream

_LARGEST = 1024  # of C: what is spread over a million entries is spread enough
_SLAB = 1 << 15  # elements that are transformed together, to stay in a core's cache


def block_size(count: int) -> int:
    """C, whose multiples are rotated: the least power of 2 whose square is at least ``count``.

    It is at most 1,024.
    """
    return min(_LARGEST, 1 << -(-(count - 1).bit_length() // 2))


def rotate(vector: Tensor, stream: Stream) -> Tensor:
    """H D'' H' D' H D x: three times random signs and Walsh-Hadamard transforms of C entries.

    H transforms C neighbours at a time, H' C entries at equal distances over the whole
    vector. After two an entry is spread over all places, after three every place holds a sum of
    many, also for a vector that has few. Every operation is a float32 sum, difference or product
    of two numbers in a fixed order, so the result has the same bits everywhere.

    Args:
        vector: float32, shape (n,), on the CPU; n a multiple of C.
        stream: of the signs.
    """
    rotated = vector.clone()
    for signs, blocks in _passes(rotated, stream):
        rotated *= signs
        _transform_(blocks)
    return rotated


def rotate_back(rotated: Tensor, stream: Stream) -> Tensor:
    """The inverse of ``rotate``, but for roundings."""
    vector = rotated.clone()
    for signs, blocks in reversed(_passes(vector, stream)):
        _transform_(blocks)
        vector *= signs
    return vector


def _passes(vector: Tensor, stream: Stream) -> list[tuple[Tensor, Tensor]]:
    """The signs of each pass, and the blocks that are then transformed: views, C in the middle."""
    size = block_size(len(vector))
    neighbours, distant = vector.view(-1, size, 1), vector.view(1, size, -1)
    signs = torch.zeros(3, len(vector))
    perturb_([signs], stream, 1.0)
    return list(zip(signs, (neighbours, distant, neighbours), strict=True))


def _transform_(blocks: Tensor) -> None:
    """The orthonormal Walsh-Hadamard transform along the middle dimension, in place."""
    size = blocks.shape[1]
    scale = torch.tensor(size, dtype=torch.float64).rsqrt().float()
    across = 0 if blocks.shape[2] == 1 else 2
    for slab in torch.split(blocks, max(1, _SLAB // size), across):
        half = 1
        while half < size:
            pairs = slab.view(slab.shape[0], -1, 2, half, slab.shape[2])
            sums = pairs[:, :, 0] + pairs[:, :, 1]
            pairs[:, :, 1].neg_().add_(pairs[:, :, 0])
            pairs[:, :, 0] = sums
            half *= 2
        slab.mul_(scale)
