"""The four kernels a backend offers, and which backend serves a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch.entries import Entries
from fullfed.sketch.generator import Stream


@dataclass(frozen=True)
class Rows:
    """Elements in rows of ``width``, each with one sign, the rows rotated or not."""

    width: int
    signs: Stream
    rotation: Stream | None


@dataclass(frozen=True)
class Direction:
    """Rows ``first``, ``first + 1``, ... (of 128 elements) of a stream."""

    stream: Stream
    first: int


class Backend(Protocol):
    """``flat`` tensors are one-dimensional, contiguous float32, bfloat16 or float16."""

    def add_projection(
        self,
        rows: Rows,
        flat: Tensor,
        before: Tensor | None,
        weight: float,
        offset: int,
        partials: Tensor,
    ) -> None:
        """partials[q div 128, c] += sign * fl(weight * fl(flat - before)), rows q in order.

        ``offset`` is the global index of the first element; partials is (groups, width).
        """

    def add_reconstruction(
        self, rows: Rows, flat: Tensor, offset: int, values: Tensor, scale: float
    ) -> None:
        """Each element += sign * fl(scale * values[c]), rounded to its dtype; values (width,)."""

    def fold(self, rows: Tensor) -> Tensor:
        """The sum (width,) of rows (n, width): 128 at a time in order from zero, repeatedly."""

    def add_products(
        self, entries: Entries, directions: Sequence[Direction], piece: Tensor, sums: Tensor
    ) -> None:
        """sums[k] += <direction k, 4096 elements of the piece>, for each 4096 in turn.

        piece is float32 (rows, 128), rows a multiple of 32.
        """

    def combine(
        self,
        entries: Entries,
        directions: Sequence[Direction],
        scalars: Tensor,
        piece: Tensor,
    ) -> None:
        """piece (rows, 128) = sum over k, in order from zero, of fl(scalars[k] * direction k)."""

    def round_to(self, target: Tensor, wide: Tensor, noise: Stream, offset: int) -> None:
        """target = the float32 ``wide``, stochastically rounded to bfloat16.

        Element g adds its 16 bits of the stream (rows of 128) to the float32's bits and drops the
        low 16; what is not finite stays what it is. ``offset`` is the first element's g.
        """


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
