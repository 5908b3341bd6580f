"""The codes: each number rounded to a level, or of a group which is the largest."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fullfed.errors import UserError
from fullfed.sketch.coded import Code
from fullfed.sketch.packed import LARGEST, LEVEL, SIGN

# Levels above zero of the quantisers of a standard normal variable with the least squared error,
# and that error (Max, "Quantizing for minimum distortion", 1960, table I).
LEVELS = {
    2: (0.4528, 1.510),
    3: (0.2451, 0.7560, 1.344, 2.152),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}
_DISTORTION = {2: 0.1175, 3: 0.03454, 4: 0.009497}
BITS = (1, *LEVELS)


@dataclass(frozen=True)
class Rounded(Code):
    """Each number is rounded to the nearest of 4, 8 or 16 levels.

    Attributes:
        bits: of a number, 2 to 4.
    """

    bits: int

    @property
    def fidelity(self) -> float:
        return 1 - _DISTORTION[self.bits]

    def nbytes(self, count: int) -> int:
        return -(-self.padded(count) * self.bits // 8)

    def packing(self) -> tuple[int, int, NDArray[np.uint16], NDArray[np.float32]]:
        return LEVEL, self.bits, _reversed(self.bits), self._levels()

    def _levels(self) -> NDArray[np.float32]:
        above = np.array(LEVELS[self.bits], dtype=np.float32)
        return np.concatenate([-above[::-1], above])


@dataclass(frozen=True)
class Largest(Code):
    """Of each ``group`` of numbers, which is the largest in absolute value, and its sign.

    That is log2(group) + 1 bits a group, the level of the largest being +-1 and all others' 0.
    With groups of one it is the signs, worth 2 / pi = 0.64 exact numbers a bit; with larger ones
    more, as many more numbers as there are: 0.80 with groups of 8, 1.0 with 128, 1.39 at last.
    (Of a vector with a handful of entries not zero the largest of these are told too large and
    the others too small, by up to half: three rotations do not make that normal enough.)

    Attributes:
        group: a power of 2.
    """

    group: int

    @property
    def fidelity(self) -> float:
        return _expected_largest(self.group) ** 2 / self.group

    def nbytes(self, count: int) -> int:
        return -(-self.padded(count) // self.group * self._bits // 8)

    def multiple(self, length: int) -> int:
        return max(super().multiple(length), self.group)

    def packing(self) -> tuple[int, int, NDArray[np.uint16], NDArray[np.float32]]:
        says = SIGN if self.group == 1 else LARGEST
        return says, self._bits, _reversed(self._bits - 1), np.zeros(0, np.float32)

    @property
    def _bits(self) -> int:
        return self.group.bit_length()


def code_of(bits: int) -> Code:
    """The code with so many bits a number.

    Raises:
        UserError: there is none.
    """
    if bits not in BITS:
        raise UserError(f"{bits} bits a coordinate: choose from 1 to {BITS[-1]}, or 32.")
    return Largest(1) if bits == 1 else Rounded(bits)


@functools.cache
def _reversed(bits: int) -> NDArray[np.uint16]:
    """Numbers of so many bits with those in reverse, which are sent lowest first."""
    turned = [sum((n >> j & 1) << (bits - 1 - j) for j in range(bits)) for n in range(1 << bits)]
    return np.array(turned, dtype=np.uint16)


@functools.cache
def _expected_largest(count: int) -> float:
    """E max |x_i| of so many standard normal x: the integral of P(max > t), by trapezoids."""
    step, steps = 1e-3, 10_000
    tail = (1 - math.erf(n * step / math.sqrt(2)) ** count for n in range(steps))
    return step * (math.fsum(tail) - 0.5)
