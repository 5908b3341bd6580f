"""Coordinates in few bits."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from fullfed.errors import UserError
from fullfed.sketch.generator import Stream
from fullfed.sketch.hadamard import block_size, rotate_, rotate_back_

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
    """K float32 numbers as a few bits and one scale.

    The numbers, and zeros up to a multiple of ``block_size(K)``, are rotated at random
    (hadamard.py), so that whatever they were they look like draws of one normal law. Each is then
    replaced by one of a few levels q, and the scale is chosen such that what is decoded is the
    truth on average over rotations (Vargaftik et al., EDEN, arXiv 2108.08842, section 3):
    ||y||**2 / <rotated y, q>.
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
        """Bytes of the codes of ``count`` numbers."""

    def encode(self, coordinates: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        """Codes, uint8, shape (nbytes,), and scale, float32, shape (1,).

        Args:
            coordinates: float32, shape (K,), on the CPU.
            stream: of the rotation; the same decodes.
        """
        count = len(coordinates)
        rotated = pad(coordinates, (0, self.padded(count) - count))
        rotate_(rotated, stream)
        codes = torch.empty(self.nbytes(count), dtype=torch.uint8)
        along = self._pack(rotated, codes)
        scale = _energy(coordinates) / along if along > 0 else 0.0
        return codes, torch.tensor([scale], dtype=torch.float32)

    def decode(
        self, codes: Tensor, scale: Tensor, count: int, stream: Stream, *, out: Tensor | None = None
    ) -> Tensor:
        """The numbers, float32, shape (count,), of the same bits everywhere.

        Args:
            codes, scale: from ``encode``.
            count: K.
            stream: that of ``encode``.
            out: float32, shape (``padded(K)``,), on the CPU: where the numbers are to be; their
                memory is new otherwise, and new memory is slower than coding is.
        """
        numbers = torch.empty(self.padded(count)) if out is None else out
        rotate_back_(numbers, stream, partial(self._unpack, codes.numpy(), scale, numbers))
        return numbers[:count]

    def padded(self, count: int) -> int:
        """How many numbers are coded for ``count``: the next multiple of ``block(count)``."""
        block = self.block(count)
        return -(-count // block) * block

    def block(self, count: int) -> int:
        """A multiple of this many numbers is coded."""
        return block_size(count)

    @abstractmethod
    def _pack(self, rotated: Tensor, codes: Tensor) -> float:
        """Write the levels q into codes; <rotated, q>."""

    @abstractmethod
    def _unpack(
        self, codes: NDArray[np.uint8], scale: Tensor, numbers: Tensor, *rotation: Any
    ) -> None:
        """Write fl(level * scale), and take the rotation's first pass (hadamard.py)."""


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

    def _pack(self, rotated: Tensor, codes: Tensor) -> float:
        from fullfed.sketch import codes_cpu  # imports numba

        levels = self._levels()
        bounds = (levels[1:] + levels[:-1]) / 2 * (_energy(rotated) / len(rotated)) ** 0.5
        tables = (bounds.numpy(), levels.numpy(), self.bits, _reversed(self.bits))
        return _summed(codes_cpu.pack_levels, rotated, *tables, codes.numpy())

    def _unpack(
        self, codes: NDArray[np.uint8], scale: Tensor, numbers: Tensor, *rotation: Any
    ) -> None:
        from fullfed.sketch import decoding_cpu  # imports numba

        levels = (self._levels() * scale).numpy()[_reversed(self.bits)]
        _in_slabs(decoding_cpu.decode_levels, numbers, codes, self.bits, levels, *rotation)

    def _levels(self) -> Tensor:
        above = torch.tensor(LEVELS[self.bits], dtype=torch.float32)
        return torch.cat([-above.flip(0), above])


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

    def block(self, count: int) -> int:
        return max(block_size(count), self.group)

    def _pack(self, rotated: Tensor, codes: Tensor) -> float:
        from fullfed.sketch import codes_cpu  # imports numba

        if self.group == 1:
            return _summed(codes_cpu.pack_signs, rotated, codes.numpy())
        groups = rotated.view(-1, self.group)
        return _summed(codes_cpu.pack_largest, groups, self._bits, self._places(), codes.numpy())

    def _unpack(
        self, codes: NDArray[np.uint8], scale: Tensor, numbers: Tensor, *rotation: Any
    ) -> None:
        from fullfed.sketch import decoding_cpu  # imports numba

        level = scale.numpy()[0]
        if self.group == 1:
            _in_slabs(decoding_cpu.decode_signs, numbers, codes, level, *rotation)
            return
        sent = (codes, self._bits - 1, self._places(), level)
        _in_slabs(decoding_cpu.decode_largest, numbers, *sent, *rotation)

    def _places(self) -> NDArray[np.uint16]:
        """What is written for a place, and for what is written the place."""
        return _reversed(self._bits - 1)

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


def _energy(vector: Tensor) -> float:
    """||vector||**2, summed in float64 in an order of its own."""
    from fullfed.sketch import codes_cpu  # imports numba

    return _summed(codes_cpu.energy, vector)


def _summed(kernel: Callable[..., None], numbers: Tensor, *arguments: Any) -> float:
    """The kernel over all runs of rows, and the sum of what it says of each."""
    from fullfed.sketch import codes_cpu  # imports numba

    sums = np.zeros(-(-len(numbers) // codes_cpu.RUN))
    _in_runs(kernel, len(numbers), numbers.numpy(), *arguments, sums)
    return math.fsum(sums)


def _in_runs(kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
    from fullfed.sketch import codes_cpu, threads_cpu  # import numba

    threads_cpu.split(kernel, -(-rows // codes_cpu.RUN), rows, *arguments)


def _in_slabs(kernel: Callable[..., None], numbers: Tensor, *arguments: Any) -> None:
    from fullfed.sketch import decoding_cpu, threads_cpu  # import numba

    slabs = -(-len(numbers) // decoding_cpu.SLAB)
    threads_cpu.split(kernel, slabs, len(numbers), numbers.numpy(), *arguments)


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
