"""Coordinates in few bits."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fullfed.errors import UserError
from fullfed.randomness import Stream
from fullfed.sketch.blocks import BLOCK, side
from fullfed.sketch.packed import Packed

LARGEST_SCALE = 1e30  # what is decoded with it is finite


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

    @abstractmethod
    def packing(self) -> tuple[int, int, NDArray[np.uint16], NDArray[np.float32]]:
        """The last four of Packed."""

    def encode(self, coordinates: Tensor, stream: Stream) -> Coded:
        """What stands for the coordinates, float32, shape (K,), on the CPU.

        Args:
            stream: of the rotation.
        """
        from fullfed.sketch import encoding_cpu, threads_cpu  # import numba

        count = len(coordinates)
        codes = torch.empty(self.nbytes(count), dtype=torch.uint8)
        coded = Coded(self, codes, torch.empty(self.blocks(count)), count, stream)
        arguments = coordinates.numpy(), coded.packed()
        threads_cpu.split(encoding_cpu.encode, len(coded.scales), count, *arguments)
        return coded

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


@dataclass(frozen=True, eq=False)
class Coded:
    """K numbers in few bits, which a basis decodes where it needs them.

    Attributes:
        code: how.
        codes: uint8, shape (``code.nbytes(count)``,), on the CPU.
        scales: float32, shape (``code.blocks(count)``,), from 0 to LARGEST_SCALE.
        count: K.
        stream: of the rotation.
        room: float32, shape (``code.padded(count)``,): where they are decoded to, if they are
            all at once, until others are; new memory is slower than decoding is.

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
        """Kernels read and write these sizes unasked."""
        _check("codes", self.codes, torch.uint8, self.code.nbytes(self.count))
        _check("scales", self.scales, torch.float32, self.code.blocks(self.count))
        if self.room is not None:
            _check("room", self.room, torch.float32, self.code.padded(self.count))

    @functools.cached_property
    def numbers(self) -> Tensor:
        """float32, shape (K,), of the same bits everywhere."""
        from fullfed.sketch import decoding_cpu, threads_cpu  # import numba

        room = torch.empty(self.code.padded(self.count)) if self.room is None else self.room
        arguments = room.numpy(), self.packed()
        threads_cpu.split(decoding_cpu.decode, len(self.scales), self.count, *arguments)
        return room[: self.count]

    def packed(self) -> Packed:
        from fullfed.sketch import cpu  # imports numba

        length, keys = self.code.padded(self.count), cpu.key(self.stream)[None]
        codes, scales = self.codes.numpy(), self.scales.numpy()
        return Packed(codes, scales, length, keys, *self.code.packing())


def _check(name: str, tensor: Tensor, dtype: torch.dtype, length: int) -> None:
    there = tensor.device.type == "cpu" and tensor.is_contiguous()
    if tensor.shape != (length,) or tensor.dtype != dtype or not there:
        raise UserError(
            f"{name} of coded coordinates are {tuple(tensor.shape)} of {tensor.dtype} on "
            f"{tensor.device}; expected ({length},) of {dtype}, contiguous, on the CPU."
        )


def scales_fit(scales: Tensor) -> bool:
    """Whether all are from 0 to LARGEST_SCALE."""
    return bool(((scales >= 0) & (scales <= LARGEST_SCALE)).all())


def decoded(coordinates: Tensor | Coded, device: torch.device | str = "cpu") -> Tensor:
    """Float32, shape (K,), on the device if they were coded."""
    return coordinates.numbers.to(device) if isinstance(coordinates, Coded) else coordinates
