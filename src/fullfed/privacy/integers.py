"""Numbers as integers modulo a power of two, which add up exactly and can be masked.

A vector of numbers x becomes integers v with E[v] unit = x: x / unit, rounded up or down at random
with the probabilities that make the mean right (stochastic rounding). Sums of n such vectors are
right modulo 2**bits as long as no integer's size exceeds (2**(bits - 1) - 1) / n. A few scalars of
unknown size travel beside them in 128 bits each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fullfed.privacy.keystream import KeyStream
from fullfed.sketch.cpu_packing import pack_bits, unpack_bits

FEWEST_BITS, MOST_BITS = 2, 32
SCALAR_BYTES = 16
_SCALAR_UNIT = 2.0**-64
_SCALAR_MODULUS = 1 << (8 * SCALAR_BYTES)
_LARGEST_SCALAR = 2.0**62  # so that sums of a million are right
_AT_ONCE = 1 << 20  # numbers rounded at a time

Integers = NDArray[np.uint32]


@dataclass(frozen=True)
class Grid:
    """What integers stand for.

    Attributes:
        unit: that of 1; positive and finite.
        bits: of an integer; sums are modulo 2**bits.
        most: that an integer of one client may be, in size.
    """

    unit: float
    bits: int
    most: int

    def rounded(self, numbers: NDArray[np.float64], stream: KeyStream) -> NDArray[np.int64]:
        """Integers of which each times ``unit`` is a number in the mean; numbers beyond ``most``
        are taken for that. Shape (K,), as ``numbers`` have."""
        rounded = np.empty(len(numbers), dtype=np.int64)
        for start in range(0, len(numbers), _AT_ONCE):
            some = numbers[start : start + _AT_ONCE] / self.unit
            some += stream.uniforms(len(some))
            np.clip(np.floor(some, out=some), -self.most, self.most, out=some)
            rounded[start : start + _AT_ONCE] = some
        return rounded

    def numbers(self, total: Integers) -> NDArray[np.float64]:
        """What a sum of integers stands for: the sum of the numbers that were rounded."""
        numbers = signed(total, self.bits).astype(np.float64)
        numbers *= self.unit
        return numbers

    @property
    def rounding_variance(self) -> float:
        """Of one rounded number about the truth, where its fraction may be anything: unit**2 / 6,
        the mean of f (1 - f) over fractions f."""
        return self.unit**2 / 6


def most_of(bits: int, clients: int) -> int:
    """The largest integer that each of ``clients`` may have for their sum to be right."""
    return int((2 ** (bits - 1) - 1) // clients)


def modular(integers: NDArray[np.int64], bits: int) -> Integers:
    """Integers modulo 2**bits."""
    return (integers & ((1 << bits) - 1)).astype(np.uint32)


def signed(integers: Integers, bits: int) -> NDArray[np.int64]:
    """The integers between -2**(bits - 1) and 2**(bits - 1) that are these modulo 2**bits."""
    half = np.int64(1 << (bits - 1))
    return ((integers.astype(np.int64) + half) & np.int64((1 << bits) - 1)) - half


def add(total: Integers, more: Integers, bits: int, sign: int = 1) -> None:
    """total += sign * more, modulo 2**bits, in place; numpy's unsigned integers wrap."""
    if sign > 0:
        np.add(total, more, out=total)
    else:
        np.subtract(total, more, out=total)
    if bits < MOST_BITS:
        np.bitwise_and(total, np.uint32((1 << bits) - 1), out=total)


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes ``count`` integers of so many bits take."""
    return -(-count * bits // 8)


def pack(integers: Integers, bits: int) -> NDArray[np.uint8]:
    """Integers below 2**bits as bits one after another, the lowest first."""
    packed = np.zeros(packed_bytes(len(integers), bits), dtype=np.uint8)
    pack_bits(integers, bits, packed)
    return packed


def unpack(packed: NDArray[np.uint8], count: int, bits: int) -> Integers:
    """The ``count`` integers that were packed."""
    integers = np.empty(count, dtype=np.uint32)
    unpack_bits(packed, bits, integers)
    return integers


def pack_scalars(numbers: Sequence[float]) -> bytes:
    """Numbers as integers of 2**-64 modulo 2**128, 16 bytes each, the lowest first."""
    return b"".join(_scalar_bytes(round(_bounded(n) / _SCALAR_UNIT)) for n in numbers)


def unpack_scalars(packed: bytes) -> list[float]:
    """What sums of such integers stand for."""
    half = _SCALAR_MODULUS // 2
    return [((n + half) % _SCALAR_MODULUS - half) * _SCALAR_UNIT for n in _scalars(packed)]


def add_scalars(total: bytes, more: bytes, sign: int = 1) -> bytes:
    """The sums, or differences, of packed scalars."""
    pairs = zip(_scalars(total), _scalars(more), strict=True)
    return b"".join(_scalar_bytes(a + sign * b) for a, b in pairs)


def _scalars(packed: bytes) -> list[int]:
    starts = range(0, len(packed), SCALAR_BYTES)
    return [int.from_bytes(packed[s : s + SCALAR_BYTES], "little") for s in starts]


def _scalar_bytes(integer: int) -> bytes:
    return (integer % _SCALAR_MODULUS).to_bytes(SCALAR_BYTES, "little")


def _bounded(number: float) -> float:
    return math.copysign(min(abs(number), _LARGEST_SCALAR), number)
