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
    """Elements in rows of ``width``, one sign each, every row rotated by its own amount or not at all."""

    width: int
    signs: Stream
    rotation: Stream | None


@dataclass(frozen=True)
class Direction:
    """Rows ``first``, ``first + 1``, ... (of 128 elements) of a stream."""

    stream: Stream
    first: int


class Backend(Protocol):
    """Flat pieces are contiguous float32; sums start from what their target holds."""

    def add_projection(self, rows: Rows, piece: Tensor, offset: int, partials: Tensor) -> None:
        """partials[q div 128, c] += sign * element, in the order of the rows q."""

    def add_reconstruction(self, rows: Rows, piece: Tensor, offset: int, values: Tensor) -> None:
        """element += sign * values[c], values of shape (width,)."""

    def add_products(
        self, entries: Entries, directions: Sequence[Direction], piece: Tensor, sums: Tensor
    ) -> None:
        """sums[k] += <direction k, 4096 elements of the piece>, for each 4096 in turn.

        piece has shape (rows, 128), rows a multiple of 32.
        """

    def add_combination(
        self,
        entries: Entries,
        directions: Sequence[Direction],
        scalars: Tensor,
        piece: Tensor,
    ) -> None:
        """piece += fl(scalars[k] * direction k), k in order; piece has shape (rows, 128)."""


def backend_for(device: torch.device, name: str | None) -> Backend:
    """The backend called ``name``, or the device's own. Imports numba or triton only here."""
    chosen = name or {"cpu": "numba"}.get(device.type)
    if chosen == "reference":
        from fullfed.sketch import reference

        return reference
    if chosen == "numba":
        from fullfed.sketch import cpu

        return cpu
    raise UserError(
        f"no sketch backend for device {device}; move the tensors to the CPU "
        'or ask for backend="reference".'
    )
