"""Coded numbers as kernels take them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIGN, LEVEL, LARGEST = range(3)


class Packed(NamedTuple):
    """Blocks of numbers in few bits: codes without gaps, each byte's highest bit first.

    Attributes:
        codes: uint8; those of a block begin with a byte.
        scales: float32, shape (blocks,).
        length: how many numbers all blocks have.
        keys: uint64, shape (1, 4), of the rotation's signs.
        says: SIGN if a code is a sign of the scale, LEVEL if it is the number of the level that
            the scale is multiplied with, LARGEST if of 2**(bits - 1) numbers it is which is not
            zero, and a sign of the scale.
        bits: of a code.
        sent: uint16: a number's bits as they are sent, and of those as they are sent the number.
        levels: float32.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    length: int
    keys: NDArray[np.uint64]
    says: int
    bits: int
    sent: NDArray[np.uint16]
    levels: NDArray[np.float32]
