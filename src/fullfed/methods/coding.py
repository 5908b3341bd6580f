"""How coordinates travel: as they are, or in a few bits each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fullfed.federation.messages import MessageError
from fullfed.sketch import LARGEST_SCALE, Code, Coded, Purpose, Stream, code_of, scales_fit


class Coding(Protocol):
    """K float32 numbers as named tensors. ``round`` and ``owner`` say whose numbers they are."""

    @property
    def fidelity(self) -> float:
        """How many exact numbers a coded one is worth, at most 1."""

    def nbytes(self, count: int) -> int:
        """Bytes of the tensors of ``count`` numbers."""

    def encode(self, numbers: Tensor, round: int, owner: int) -> dict[str, Tensor]:
        """The tensors; their mean over the code's own randomness is decoded as the numbers."""

    def check(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Raise MessageError unless these can be the tensors of ``count`` numbers."""

    def room(self, count: int) -> Tensor:
        """Where to decode: one for many, since new memory is slower than decoding is."""

    def received(
        self, tensors: Mapping[str, Tensor], count: int, round: int, owner: int, room: Tensor
    ) -> Tensor | Coded:
        """The numbers, float32, shape (count,), on the CPU; of use until the room is used again."""


@dataclass(frozen=True)
class Exact:
    """float32."""

    @property
    def fidelity(self) -> float:
        return 1.0

    def nbytes(self, count: int) -> int:
        return 4 * count

    def encode(self, numbers: Tensor, round: int, owner: int) -> dict[str, Tensor]:
        return {"coordinates": numbers}

    def check(self, tensors: Mapping[str, Tensor], count: int) -> None:
        _check_shapes(tensors, {"coordinates": ((count,), torch.float32)})

    def room(self, count: int) -> Tensor:
        return torch.empty(0)

    def received(
        self, tensors: Mapping[str, Tensor], count: int, round: int, owner: int, room: Tensor
    ) -> Tensor:
        return tensors["coordinates"].cpu()


@dataclass(frozen=True)
class InBits:
    """Few bits, and scales (sketch.Code).

    Attributes:
        seed: the recipe's.
        code: how.
    """

    seed: int
    code: Code

    @property
    def fidelity(self) -> float:
        return self.code.fidelity

    def nbytes(self, count: int) -> int:
        return self.code.nbytes(count) + 4 * self.code.blocks(count)

    def encode(self, numbers: Tensor, round: int, owner: int) -> dict[str, Tensor]:
        coded = self.code.encode(numbers.cpu(), self._stream(round, owner))
        return {"codes": coded.codes, "scales": coded.scales}

    def check(self, tensors: Mapping[str, Tensor], count: int) -> None:
        codes, blocks = (self.code.nbytes(count),), (self.code.blocks(count),)
        expected = {"codes": (codes, torch.uint8), "scales": (blocks, torch.float32)}
        _check_shapes(tensors, expected)
        if not scales_fit(tensors["scales"]):
            raise MessageError(f"the report's scales are not between 0 and {LARGEST_SCALE:g}")

    def room(self, count: int) -> Tensor:
        return torch.empty(self.code.padded(count))

    def received(
        self, tensors: Mapping[str, Tensor], count: int, round: int, owner: int, room: Tensor
    ) -> Coded:
        codes, scales = tensors["codes"].cpu(), tensors["scales"].cpu()
        return Coded(self.code, codes, scales, count, self._stream(round, owner), room)

    def _stream(self, round: int, owner: int) -> Stream:
        return Stream(self.seed, Purpose.CODES, round, owner)


def coding(seed: int, bits: int) -> Coding:
    """The coding with so many bits a number, 32 being float32."""
    return Exact() if bits == 32 else InBits(seed, code_of(bits))


def _check_shapes(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> None:
    if tensors.keys() != expected.keys():
        raise MessageError("the report does not hold coordinates and nothing else")
    for name, (shape, dtype) in expected.items():
        sent = tensors[name]
        if sent.shape != shape or sent.dtype != dtype:
            raise MessageError(
                f"the report's {name} are {tuple(sent.shape)} of {sent.dtype}, "
                f"not {shape} of {dtype}"
            )
