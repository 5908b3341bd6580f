"""numba kernels: integers of any few bits without gaps between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fullfed.sketch.cpu_numbers import kernel


@kernel
def pack_bits(integers: NDArray[np.uint32], bits: int, packed: NDArray[np.uint8]) -> None:
    """The lowest ``bits`` (2 to 32) of each integer one after another, the lowest first.

    Args:
        packed: filled; of as many bytes as that takes.
    """
    held, filled, position = np.uint64(0), np.uint64(0), 0
    for integer in integers:
        held |= np.uint64(integer) << filled
        filled += np.uint64(bits)
        while filled >= np.uint64(8):
            packed[position] = held & np.uint64(0xFF)
            held >>= np.uint64(8)
            filled -= np.uint64(8)
            position += 1
    if filled > np.uint64(0):
        packed[position] = held & np.uint64(0xFF)


@kernel
def unpack_bits(packed: NDArray[np.uint8], bits: int, integers: NDArray[np.uint32]) -> None:
    """The same backwards; ``integers`` are filled."""
    held, filled, position = np.uint64(0), np.uint64(0), 0
    lowest = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    for number in range(len(integers)):
        while filled < np.uint64(bits):
            held |= np.uint64(packed[position]) << filled
            filled += np.uint64(8)
            position += 1
        integers[number] = held & lowest
        held >>= np.uint64(bits)
        filled -= np.uint64(bits)
