"""The kernels a backend offers, and which backend serves a device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.randomness import Stream
from fullfed.sketch.blocks import BLOCK
from fullfed.sketch.coded import Coded
from fullfed.sketch.entries import Entries


@dataclass(frozen=True)
class Rows:
    """Elements in rows of ``width``, each with one sign, the rows rotated or not.

    Attributes:
        depth: how many rows a counter of ``signs`` serves, a power of two from 4 to 128. Where
            there are fewer than 128 rows, its other bits are the signs of other columns.
    """

    width: int
    signs: Stream
    rotation: Stream | None
    depth: int = 128

    @property
    def counters(self) -> int:
        """How many serve that many rows: those of columns c, c + counters, ... are the same.

        Where they are many and serve several columns, so many that these begin with blocks, which
        are coded by themselves (docs/shared-randomness.md, sections 4 and 9).
        """
        least = -(-self.width * self.depth // 128)
        if self.depth == 128 or least <= BLOCK:
            return least
        return -(-least // BLOCK) * BLOCK


class Direction(NamedTuple):
    """A stream's numbers in rows of 128 from row ``first`` on, a multiple of a counter's rows."""

    stream: Stream
    first: int


class Piece(NamedTuple):
    """Elements ``offset``, ``offset + 1``, ... of a model or a block.

    ``flat`` and ``before`` are one-dimensional, contiguous float32, bfloat16 or float16;
    ``factor`` is a float32. A list of pieces is in the order of their offsets.
    """

    flat: Tensor
    offset: int
    factor: float = 1.0
    before: Tensor | None = None


class Backend(Protocol):
    """Lists of pieces are not empty, nor is any piece; all are on one device."""

    def add_projection(self, rows: Rows, pieces: Sequence[Piece], partials: Tensor) -> None:
        """partials[q div 128, c] += sign * fl(factor * fl(flat - before)), rows q in order.

        partials is float32 (groups, width).
        """

    def add_reconstruction(
        self, rows: Rows, pieces: Sequence[Piece], values: Tensor | Coded
    ) -> None:
        """flat += sign * fl(values[c] * factor), rounded to its dtype; values (width,)."""

    def fold(self, rows: Tensor) -> Tensor:
        """The sum (width,) of rows (n, width): 128 at a time in order from zero, repeatedly."""

    def add_products(
        self, entries: Entries, directions: Sequence[Direction], piece: Tensor, sums: Tensor
    ) -> None:
        """sums[k] += <direction k, 4096 elements of the piece>, for each 4096 in turn.

        piece is float32 (rows, 128), rows a multiple of 32.
        """

    def add_combination(
        self,
        entries: Entries,
        directions: Sequence[Direction],
        scalars: Tensor,
        pieces: Sequence[Piece],
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
