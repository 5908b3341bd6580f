"""Where kernels find the elements of a list of tensors, and the factors of each, in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fullfed.sketch.cpu_numbers import compiled, widen


class Scaling(NamedTuple):
    """The factors of some segments' elements: fl(power of the row * power of the column).

    Attributes:
        rows, columns: float32, the powers of all rows and of all columns, segment by segment.
        first_rows, first_columns: int64, shape (segments,): where each segment's begin.
        widths: int64, shape (segments,): columns of a segment, which is whole rows.
    """

    rows: NDArray[np.float32]
    columns: NDArray[np.float32]
    first_rows: NDArray[np.int64]
    first_columns: NDArray[np.int64]
    widths: NDArray[np.int64]


HOLE = np.iinfo(np.int64).min  # the place of elements that are not here


class Table(NamedTuple):
    """Segments in the order of their elements, all of one dtype, as positions in memory.

    Element e of the table, counted from its first, is number ``places[n] + e`` of ``memory`` if
    segment n has it. Where elements between two segments are not here, a segment at HOLE has them.

    Attributes:
        first: the number of the first element in the whole list of tensors.
        memory: all of this process's memory as an array of the segments' dtype; never read as a
            whole. bfloat16 is uint16, float16 int16.
        places: int64, shape (segments,).
        memory_before, places_before: the same for the elements before training; None and zeros
            if the elements are changes.
        edges: int64, shape (segments + 1,): where each segment begins, and where the last ends.
        factors: float32, shape (segments,).
        scaling: each element's own factor; None if that is 1.
    """

    first: int
    memory: NDArray[Any]
    places: NDArray[np.int64]
    memory_before: NDArray[Any] | None
    places_before: NDArray[np.int64]
    edges: NDArray[np.int64]
    factors: NDArray[np.float32]
    scaling: Scaling | None


@compiled
def holder(edges: NDArray[np.int64], element: int, n: int) -> int:
    """Which segment has the element; n is a likely one."""
    if edges[n] <= element < edges[n + 1]:
        return n
    return int(np.searchsorted(edges, element, side="right")) - 1


@compiled
def less(after: np.float32, memory_before: NDArray[Any] | None, place: np.uint64) -> np.float32:
    """``after`` less what is at ``place`` of ``memory_before``, if that is not None."""
    if memory_before is None:
        return after
    change: np.float32 = after - widen(memory_before[place])
    return change


@compiled
def row_of(
    scaling: Scaling | None, n: int, element: int, first: int, last: int
) -> tuple[int, np.float32, int]:
    """How far one row goes of elements that are counted from ``first`` to before ``last``.

    ``first`` is element ``element`` of segment n. Returns (cut, power, place): those before ``cut``
    are in the same row, which has this power, and number c has that of ``columns[place + c]``.
    """
    if scaling is None:
        return last, np.float32(1), 0
    row, column = divmod(element, scaling.widths[n])
    cut = min(last, first + scaling.widths[n] - column)
    power = scaling.rows[scaling.first_rows[n] + row]
    return cut, power, scaling.first_columns[n] + column - first


@compiled
def times(
    change: np.float32, scaling: Scaling | None, power: np.float32, place: np.uint64
) -> np.float32:
    """The change times the factor of a row's power and a column's, if there are any."""
    if scaling is None:
        return change
    return np.float32(change * np.float32(power * scaling.columns[place]))
