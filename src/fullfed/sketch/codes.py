"""Coordinates in few bits."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch.blocks import BLOCK, side
from fullfed.sketch.generator import Stream
from fullfed.sketch.packed import LARGEST, LEVEL, SIGN, Packed

# Levels above zero of the quantisers of a standard normal variable with the least squared error,
# and that error (Max, "Quantizing for minimum distortion", 1960, table I).
LEVELS = {
    2: (0.4528, 1.510),
    3: (0.2451, 0.7560, 1.344, 2.152),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}
_DISTORTION = {2: 0.1175, 3: 0.03454, 4: 0.009497}
BITS = (1, *LEVELS)


class Code(ABC):
    """K float32 numbers as a few bits each, and a scale for each block of them.

    Blocks have 65,536 numbers, the last what is left and zeros up to a multiple of its C and group.
    Each is rotated at random (rotation_cpu.py), so that whatever its numbers were they look like
    draws of one normal law. Each number is then replaced by one of a few levels q, and the scale
    is chosen such that what is decoded is the truth on average over rotations (Vargaftik et al.,
    EDEN, arXiv 2108.08842, section 3): ||y||**2 / <rotated y, q>.
    """

    @property
    @abstractmethod
    def fidelity(self) -> float:
        """1 - D: K coded numbers are worth this share of K exact ones.

        Decoded numbers have 1 / (1 - D) times the energy of the true ones, and a sketch's
        noise is its energy over K.
        """

    @abstractmethod
    def nbytes(self, count: int) -> int:
        """Bytes of the codes of ``count`` numbers, without the scales."""

    def encode(self, coordinates: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        """Codes, uint8, shape (nbytes,), and scales, float32, shape (blocks,).

        Args:
            coordinates: float32, shape (K,), on the CPU.
            stream: of the rotation; the same decodes.
        """
        from fullfed.sketch import encoding_cpu, threads_cpu  # import numba

        count = len(coordinates)
        codes = torch.empty(self.nbytes(count), dtype=torch.uint8)
        scales = torch.empty(self.blocks(count))
        packed = self._packed(codes, scales, count, stream)
        threads_cpu.split(encoding_cpu.encode, len(scales), count, coordinates.numpy(), packed)
        return codes, scales

    def decode(
        self,
        codes: Tensor,
        scales: Tensor,
        count: int,
        stream: Stream,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """The numbers, float32, shape (count,), of the same bits everywhere.

        Args:
            codes, scales: from ``encode``.
            count: K.
            stream: that of ``encode``.
            out: float32, shape (``padded(K)``,), on the CPU: where the numbers are to be; their
                memory is new otherwise, and new memory is slower than coding is.
        """
        from fullfed.sketch import decoding_cpu, threads_cpu  # import numba

        numbers = torch.empty(self.padded(count)) if out is None else out
        packed = self._packed(codes, scales, count, stream)
        threads_cpu.split(decoding_cpu.decode, len(scales), count, numbers.numpy(), packed)
        return numbers[:count]

    def padded(self, count: int) -> int:
        """How many numbers are coded for ``count``."""
        rest = count % BLOCK
        multiple = self.multiple(rest)
        return count - rest + -(-rest // multiple) * multiple

    def blocks(self, count: int) -> int:
        """How many blocks, and scales, ``count`` numbers have."""
        return -(-count // BLOCK)

    def multiple(self, length: int) -> int:
        """A block of this length gets zeros up to a multiple of so many numbers."""
        return side(length)

    def _packed(self, codes: Tensor, scales: Tensor, count: int, stream: Stream) -> Packed:
        from fullfed.sketch import cpu  # imports numba

        keys = cpu.key(stream)[None]
        return Packed(codes.numpy(), scales.numpy(), self.padded(count), keys, *self._packing())

    @abstractmethod
    def _packing(self) -> tuple[int, int, NDArray[np.uint16], NDArray[np.float32]]:
        """What a code says, its bits, how they are sent, and levels: see Packed."""


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

    def _packing(self) -> tuple[int, int, NDArray[np.uint16], NDArray[np.float32]]:
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
        return max(side(length), self.group)

    def _packing(self) -> tuple[int, int, NDArray[np.uint16], NDArray[np.float32]]:
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
