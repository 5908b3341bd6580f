"""Many pieces of a model in one call: a table of where they are."""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from fullfed.sketch.backends import Piece


class Table(NamedTuple):
    """Pieces that follow on one another, all of the same dtypes.

    Attributes:
        first: the number of their first element.
        after, before: uint64, where they are, and where what they were before.
        edges: int64, where each begins, counted from ``first``, and where the last ends.
        factors: float32.
        stored, stored_before: empty arrays of their dtypes; None if there is no before.
    """

    first: int
    after: NDArray[np.uint64]
    before: NDArray[np.uint64]
    edges: NDArray[np.int64]
    factors: NDArray[np.float32]
    stored: NDArray[Any]
    stored_before: NDArray[Any] | None

    @property
    def length(self) -> int:
        return int(self.edges[-1])


def tables(pieces: Sequence[Piece]) -> Iterator[Table]:
    """Consecutive pieces of the same dtypes together: in the order that sums are in."""
    for _, alike in itertools.groupby(pieces, _dtypes):
        yield _table(list(alike))


def _dtypes(piece: Piece) -> tuple[torch.dtype, torch.dtype | None]:
    return piece.flat.dtype, None if piece.before is None else piece.before.dtype


def _table(pieces: Sequence[Piece]) -> Table:
    flat, offset, _, before = pieces[0]
    return Table(
        offset,
        np.array([piece.flat.data_ptr() for piece in pieces], dtype=np.uint64),
        np.array([0 if p.before is None else p.before.data_ptr() for p in pieces], dtype=np.uint64),
        np.cumsum([0, *(piece.flat.numel() for piece in pieces)], dtype=np.int64),
        np.array([piece.factor for piece in pieces], dtype=np.float32),
        stored(flat[:0]),
        None if before is None else stored(before[:0]),
    )


def stored(flat: Tensor) -> NDArray[Any]:
    """A tensor's memory; bfloat16 as uint16 and float16 as int16, as the kernels expect."""
    if flat.dtype != torch.float32:
        flat = flat.view(torch.uint16 if flat.dtype == torch.bfloat16 else torch.int16)
    array: NDArray[Any] = flat.numpy()
    return array


@intrinsic
def _pointer(context: Any, address: Any, like: Any) -> Any:
    target = types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(target))

    return target(types.uint64, like), generate


@njit
def piece_at(addresses, edges, n, like):
    """Piece n, of the dtype of the array ``like``; None if that is None."""
    if like is None:
        return None
    length = edges[n + 1] - edges[n]
    return carray(_pointer(addresses[n], like), length)  # type: ignore[call-arg]


@njit
def holder(edges, element, n):
    """Which piece has the element; n is the likely one."""
    if edges[n] <= element < edges[n + 1]:
        return n
    return np.searchsorted(edges, element, side="right") - 1
