"""Coordinates in few bits: the codes, coded coordinates, and what a budget of bytes affords."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.randomness import Stream
from fullfed.sketch.backends import CODED_BLOCK, Message, Packing, backend_for, side

LARGEST_SCALE = 1e30  # what is decoded with it is finite

# Levels above zero of the quantisers of a standard normal variable with the least squared error,
# and that error (Max, "Quantizing for minimum distortion", 1960, table I).
LEVELS = {
    2: (0.4528, 1.510),
    3: (0.2451, 0.7560, 1.344, 2.152),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}
_DISTORTION = {2: 0.1175, 3: 0.03454, 4: 0.009497}
BITS = (1, *LEVELS)  # bits a number, of the codes that ``code_of`` knows

_LARGEST_GROUP = 1024  # larger ones gain little
_SPREAD = 4  # parameters for each number, at least, where few of the numbers are sent


class Code(ABC):
    """K float32 numbers as a few bits each, and a float32 scale for each block of them.

    Blocks have 65,536 numbers, the last what is left and zeros up to a multiple of its C and group
    (docs/shared-randomness.md, section 9). Each block is rotated at random, so that its numbers
    look like draws of one normal law whatever they were. Each is then replaced by one of a few
    levels q. The scale is ||y||**2 / <rotated y, q>, with which the mean over uniformly random
    rotations is the truth (Vargaftik et al., EDEN, arXiv 2108.08842, section 3). Three rounds of
    signs and Walsh-Hadamard transforms are not uniformly random: see docs/sketch.md for which
    blocks the mean is off.
    """

    @property
    @abstractmethod
    def fidelity(self) -> float:
        """1 - D, D the squared error of the best multiple of q, relative to that of a normal law.

        K coded numbers are worth this share of K exact ones: decoded numbers have 1 / (1 - D)
        times the energy of the true ones, and a sketch's error is its energy over K.
        """

    @property
    @abstractmethod
    def packing(self) -> Packing:
        """How its numbers are sent."""

    def nbytes(self, count: int) -> int:
        """Bytes of the codes of ``count`` numbers, without the scales."""
        return -(-self.padded(count) // self.packing.group * self.packing.bits // 8)

    def blocks(self, count: int) -> int:
        """How many blocks, and scales, ``count`` numbers have."""
        return -(-count // CODED_BLOCK)

    def padded(self, count: int) -> int:
        """How many numbers are coded for ``count``: zeros fill up the last block."""
        rest = count % CODED_BLOCK
        multiple = max(side(rest), self.packing.group)
        return count - rest + -(-rest // multiple) * multiple

    def encode(self, coordinates: Tensor, stream: Stream, *, backend: str | None = None) -> Coded:
        """What stands for the coordinates.

        Args:
            coordinates: float32, shape (K,). The codes are made where they are, and stay there.
            stream: of the rotations.
            backend: "reference", "numba" or "triton", of the same bits; by default the device's
                own.

        Raises:
            UserError: no backend serves the coordinates' device.
        """
        count, device = len(coordinates), coordinates.device
        codes = torch.empty(self.nbytes(count), dtype=torch.uint8, device=device)
        scales = torch.empty(self.blocks(count), dtype=torch.float32, device=device)
        coded = Coded(self, codes, scales, count, stream)
        backend_for(device, backend).encode(coordinates, coded.message)
        return coded


@dataclass(frozen=True)
class LloydMax(Code):
    """Each number becomes the nearest of 4, 8 or 16 levels: Lloyd and Max's for a normal law.

    Attributes:
        bits: of a number, 2 to 4.
    """

    bits: int

    @property
    def fidelity(self) -> float:
        return 1 - _DISTORTION[self.bits]

    @property
    def packing(self) -> Packing:
        above = LEVELS[self.bits]
        return Packing(self.bits, 1, (*(-level for level in reversed(above)), *above))


@dataclass(frozen=True)
class GroupArgmax(Code):
    """Which of each ``group`` of numbers is the largest in absolute value, and its sign.

    That is log2(group) + 1 bits a group; the largest has level +-1 and all others 0. Groups of one
    are signs, worth 2 / pi = 0.64 exact numbers a bit. Larger groups are worth more a bit, if there
    are so many more numbers: 0.80 with groups of 8, 1.0 with 128, 1.39 in the limit.

    Attributes:
        group: a power of 2.
    """

    group: int

    @property
    def fidelity(self) -> float:
        return _expected_largest(self.group) ** 2 / self.group

    @property
    def packing(self) -> Packing:
        return Packing(self.group.bit_length(), self.group, ())


@functools.cache
def _expected_largest(count: int) -> float:
    """E max |x_i| of so many standard normal x: the integral of P(max > t), by trapezoids."""
    step, steps = 1e-3, 10_000
    tail = (1 - math.erf(n * step / math.sqrt(2)) ** count for n in range(steps))
    return step * (math.fsum(tail) - 0.5)


def code_of(bits: int) -> Code:
    """The code with so many bits a number, 1 to 4.

    Raises:
        UserError: there is none.
    """
    if bits not in BITS:
        raise UserError(f"{bits} bits a coordinate: choose from 1 to {BITS[-1]}, or 32.")
    return GroupArgmax(1) if bits == 1 else LloydMax(bits)


@dataclass(frozen=True, eq=False)
class Coded:
    """K numbers in few bits, on one device; every basis takes them in place of the numbers.

    Attributes:
        code: how.
        codes: uint8, shape (``code.nbytes(count)``,).
        scales: float32, shape (``code.blocks(count)``,), from 0 to LARGEST_SCALE.
        count: K.
        stream: of the rotations.
        room: float32, shape (``code.padded(count)``,): memory that ``numbers`` is
            decoded into, so that who decodes many need not touch new memory for each. It is
            overwritten by the next.

    Raises:
        UserError: a tensor that is not that.
    """

    code: Code
    codes: Tensor
    scales: Tensor
    count: int
    stream: Stream
    room: Tensor | None = None

    def __post_init__(self) -> None:
        """Kernels read and write these sizes without looking."""
        device = self.codes.device
        _check("codes", self.codes, torch.uint8, self.code.nbytes(self.count), device)
        _check("scales", self.scales, torch.float32, self.code.blocks(self.count), device)
        if self.room is not None:
            _check("room", self.room, torch.float32, self.code.padded(self.count), device)

    @property
    def message(self) -> Message:
        """The same as backends take it."""
        padded, packing = self.code.padded(self.count), self.code.packing
        return Message(self.codes, self.scales, padded, self.stream, packing)

    @functools.cached_property
    def numbers(self) -> Tensor:
        """float32, shape (K,), on the codes' device, of the same bits everywhere."""
        return self.decode()

    def decode(self, backend: str | None = None) -> Tensor:
        """The numbers, float32, shape (K,), on the codes' device.

        Args:
            backend: as for ``Code.encode``.

        Raises:
            UserError: no backend serves the codes' device.
        """
        room, device = self.room, self.codes.device
        if room is None:
            room = torch.empty(self.code.padded(self.count), dtype=torch.float32, device=device)
        backend_for(device, backend).decode(self.message, room)
        return room[: self.count]

    def to(self, device: torch.device | str) -> Coded:
        """The same on the device; without ``room``, unless it is there already."""
        codes = self.codes.to(device)
        if codes is self.codes:
            return self
        return replace(self, codes=codes, scales=self.scales.to(device), room=None)


def _check(
    name: str, tensor: Tensor, dtype: torch.dtype, length: int, device: torch.device
) -> None:
    there = tensor.device == device and tensor.is_contiguous()
    if tensor.shape != (length,) or tensor.dtype != dtype or not there:
        raise UserError(
            f"{name} of coded coordinates are {tuple(tensor.shape)} of {tensor.dtype} on "
            f"{tensor.device}; expected ({length},) of {dtype}, contiguous, on {device}."
        )


def scales_fit(scales: Tensor) -> bool:
    """Whether all are from 0 to LARGEST_SCALE; NaN is not."""
    return bool(((scales >= 0) & (scales <= LARGEST_SCALE)).all())


def decoded(
    coordinates: Tensor | Coded, device: torch.device | str = "cpu", backend: str | None = None
) -> Tensor:
    """Float32, shape (K,), on the device if they were coded; else the coordinates as they are."""
    if isinstance(coordinates, Tensor):
        return coordinates
    there = coordinates.to(device)
    return there.decode(backend) if backend else there.numbers


def affordable(nbytes: int, most: int, times: int = 1) -> tuple[int, Code | None]:
    """The K <= ``most`` and the code, None for float32, that are worth most in ``nbytes`` bytes.

    K coded numbers are worth K (1 - D) exact ones, or K (1 - D)**times if what was decoded is coded
    again so many ``times`` in all. Codes that send few of the numbers get a quarter of ``most`` at
    most: reconstructing from so many costs a copy or two of all the parameters, from more several.
    One block's scale is not counted (it is part of a report's header), those of further ones are.
    """
    groups = (1 << n for n in range(_LARGEST_GROUP.bit_length()))
    codes: list[Code] = [*map(GroupArgmax, groups), *map(LloydMax, LEVELS)]
    choices: list[tuple[int, Code | None]] = [(min(most, nbytes // 4), None)]
    for code in codes:
        limit = most if code.packing.group == 1 else most // _SPREAD
        choices.append((_fitting(nbytes, limit, code), code))

    def worth(choice: tuple[int, Code | None]) -> float:
        count, code = choice
        return count * code.fidelity**times if code else float(count)

    return max(choices, key=worth)


def _fitting(nbytes: int, most: int, code: Code) -> int:
    """The largest K, at most ``most``, whose codes and further scales fit ``nbytes``."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if code.nbytes(middle) + 4 * (code.blocks(middle) - 1) <= nbytes:
            low = middle
        else:
            high = middle - 1
    return low
