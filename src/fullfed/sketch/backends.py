"""What a backend does, what it is given, and which backend serves a device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.randomness import Stream
from fullfed.sketch.entries import Entries

CODED_BLOCK = 65536  # numbers that are rotated and coded together: they fit a core's cache


class Factors(NamedTuple):
    """Of the elements of a matrix, fl(rows[i] * columns[j]); both float32, one-dimensional."""

    rows: Tensor
    columns: Tensor


class Segment(NamedTuple):
    """Elements ``offset``, ``offset + 1``, ... of a list of tensors seen as one row of elements.

    Attributes:
        flat: the elements, one-dimensional, contiguous, float32, bfloat16 or float16.
        offset: the number of the first.
        factor: multiplies what is read from or added to them; a float32.
        before: what ``flat`` was before training, of the same shape; None if ``flat`` is the
            change itself.
        factors: what is read from each element, or added to it, is multiplied by its own after
            ``factor``; None if it is not. Only for backends that are SCALED.
    """

    flat: Tensor
    offset: int
    factor: float = 1.0
    before: Tensor | None = None
    factors: Factors | None = None


@dataclass(frozen=True)
class Rows:
    """Elements in rows, each element with one sign.

    Attributes:
        width: elements in a row.
        signs: the stream of the signs.
        rotation: the stream of how far each row is rotated; None if rows are not rotated.
        depth: how many rows an output of ``signs`` serves, a power of 2 from 4 to 128. If it is
            less than 128, no element is in a row beyond it.
    """

    width: int
    signs: Stream
    rotation: Stream | None
    depth: int = 128

    @property
    def counters(self) -> int:
        """How many outputs serve ``depth`` rows; columns so far apart share one.

        If columns do share them, a number above 65,536 is rounded up to a multiple of it
        (docs/shared-randomness.md, section 4).
        """
        least = -(-self.width * self.depth // 128)
        if self.depth == 128 or least <= CODED_BLOCK:
            return least
        return -(-least // CODED_BLOCK) * CODED_BLOCK


class DirectionRows(NamedTuple):
    """A stream's numbers in rows of 128, from row ``first`` on: a multiple of an output's rows."""

    stream: Stream
    first: int


class Packing(NamedTuple):
    """How a block of numbers is sent: codes of ``bits`` bits without gaps, and a scale.

    A code stands for one number and says which of ``levels`` it is, in units of the scale; or, if
    there are no levels, for ``group`` numbers and says which of them is not 0 and whether it is
    the scale or its negative.
    """

    bits: int
    group: int
    levels: tuple[float, ...]


class Message(NamedTuple):
    """Coded numbers, on one device.

    Attributes:
        codes: uint8: the codes of all blocks.
        scales: float32, shape (blocks,).
        padded: how many numbers they stand for, zeros at the end included.
        stream: of the rotations.
        packing: how they are sent.
    """

    codes: Tensor
    scales: Tensor
    padded: int
    stream: Stream
    packing: Packing


class Backend(Protocol):
    """The operations of the package; lists of segments are in the order of their offsets.

    They are not empty, nor is any segment; all tensors are on one device. Either all segments of a
    list have factors or none has.

    Attributes:
        SCALED: whether segments may have factors.
    """

    SCALED: bool

    def add_projection(self, rows: Rows, segments: Sequence[Segment], partials: Tensor) -> None:
        """partials[q div 128, c] += sign * fl(factor * fl(flat - before)), rows q in order.

        partials is float32, shape (groups of 128 rows, width).
        """

    def add_reconstruction(self, rows: Rows, segments: Sequence[Segment], values: Tensor) -> None:
        """flat += sign * fl(values[c] * factor), rounded to its dtype.

        values is float32, shape (width,).
        """

    def fold(self, rows: Tensor) -> Tensor:
        """The sum (width,) of rows (n, width): 128 at a time in order from zero, repeatedly."""

    def add_products(
        self, entries: Entries, directions: Sequence[DirectionRows], elements: Tensor, sums: Tensor
    ) -> None:
        """sums[k] += <direction k, 4096 elements>, for each 4096 in turn.

        elements is float32, shape (rows, 128), rows a multiple of 32; sums float32, shape (K,).
        """

    def add_combination(
        self,
        entries: Entries,
        directions: Sequence[DirectionRows],
        scalars: Tensor,
        segments: Sequence[Segment],
    ) -> None:
        """flat += fl(u * factor), rounded to its dtype.

        u = sum over k, in order from zero, of fl(scalars[k] * number of direction k), element e
        having the number in row e div 128 and column e mod 128.
        """

    def round_to(self, target: Tensor, wide: Tensor, noise: Stream, offset: int) -> None:
        """target = the float32 ``wide``, stochastically rounded to bfloat16.

        Element g adds its 16 bits of the stream (rows of 128) to the float32's bits and drops the
        low 16; what is not finite stays what it is. ``offset`` is the first element's g.
        """

    def dither(self, wide: Tensor, noise: Stream, offset: int, dropped: int) -> None:
        """wide = another float32 that rounds to the same 16-bit number, whose conversion it is.

        Element g adds max(its 16 bits of the stream >> (16 - dropped), 1) - 2**(dropped - 1) to the
        float32's bits; zeros and what is not finite stay what they are. ``dropped`` is how many of
        a float32's bits the 16-bit type has not: 16 for bfloat16, 13 for float16.
        """

    def encode(self, numbers: Tensor, message: Message) -> None:
        """Write the codes and scales of float32 numbers, and of zeros after them."""

    def decode(self, message: Message, numbers: Tensor) -> None:
        """Write what codes and scales stand for, float32, shape (padded,)."""


def side(length: int) -> int:
    """C of a block of coded numbers: the least power of 2 whose square is at least ``length``."""
    found = 1
    while found * found < length:
        found *= 2
    return found


@functools.cache
def backend_for(device: torch.device, name: str | None) -> Backend:
    """The backend called ``name``, or the device's own. Imports numba or triton only here."""
    chosen = name or {"cpu": "numba", "cuda": "triton"}.get(device.type)
    if chosen == "reference":
        from fullfed.sketch import reference

        return reference
    if chosen == "numba":
        from fullfed.sketch import cpu

        return cpu
    if chosen == "triton":
        from fullfed.sketch import cuda

        return cuda
    raise UserError(
        f"no sketch backend for device {device}; move the tensors to a CPU or CUDA device "
        'or ask for backend="reference".'
    )
