"""The sign basis in numba: one pass over memory, in parallel over groups of rows and columns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fullfed.sketch.cpu_numbers import at, compiled, fill_words, kernel, narrow, signed, widen
from fullfed.sketch.cpu_tables import HOLE, Table, holder, less, row_of, times

_SHIFT = np.uint64(32)


class Layout(NamedTuple):
    """How elements stand in rows (backends.Rows), and how work is cut into items.

    An item is one run of outputs of one group of 128 rows.

    Attributes:
        width, depth, counters: as in Rows.
        rotated: whether rows are rotated.
        keys: uint64, shape (2, 4), of the signs and of the rotation, as fill_words takes them.
        first_group: the group of the first item.
        runs: how many runs a group's outputs are cut into.
        run: outputs in a run.
        long: rows of at least so many elements are projected four at a time.
    """

    width: int
    depth: int
    counters: int
    rotated: bool
    keys: NDArray[np.uint64]
    first_group: int
    runs: int
    run: int
    long: int


class Item(NamedTuple):
    """What is the same for all columns of an item.

    Attributes:
        begin: the element of the table that row 0 of the group begins with; may be negative.
        top, bottom: the rows from the first to past the last that have elements of the table.
        low, high: the outputs from the first to past the last that serve elements of the table.
        words: uint32, shape (4, run): outputs low, low + 1, ... of the signs.
        turns: int64, shape (128,): the rotation of each row.
    """

    begin: int
    top: int
    bottom: int
    low: int
    high: int
    words: NDArray[np.uint32]
    turns: NDArray[np.int64]


@compiled
def _fill_turns(turns: NDArray[np.int64], group: int, layout: Layout) -> None:
    """turns[r] = the rotation of row r of the group."""
    words = np.empty((4, 32), np.uint32)
    fill_words(words, group * 32, 32, layout.keys[1])
    for r in range(128):
        word = np.uint64(words[r % 4, r // 4])
        turns[r] = np.int64((word * np.uint64(layout.width)) >> _SHIFT) if layout.rotated else 0


@compiled
def _stretch(
    wrapped: int, begin: int, turn: int, low: int, high: int, width: int, length: int
) -> tuple[int, int, int]:
    """Where a row's columns low, ..., high - 1 are in the table: in up to two stretches.

    ``wrapped`` is 0 for the stretch before the point where the rotation wraps and 1 for the one
    after it; ``begin`` is the row's first element. Returns (place, first, last): column c from
    first to last - 1 is element place + c. There is none if last <= first.
    """
    place = begin - turn + wrapped * width
    first = max(low, 0 if wrapped else turn, -place)
    last = min(high, turn if wrapped else width, length - place)
    return place, first, last


@compiled
def _served(
    begin: int, turns: NDArray[np.int64], low: int, high: int, layout: Layout, length: int
) -> tuple[int, int]:
    """Of outputs low, ..., high - 1 the first and past the last that serve the table's elements."""
    least, most = high, low
    for bit in range(128):
        skipped, r = (bit // layout.depth) * layout.counters, bit % layout.depth
        right = min(layout.width, high + skipped)
        row = begin + r * layout.width
        for wrapped in range(2):
            _, first, last = _stretch(
                wrapped, row, turns[r], low + skipped, right, layout.width, length
            )
            if first < last:
                least, most = min(least, first - skipped), max(most, last - skipped)
    return least, most


@compiled
def _prepared(
    number: int, table: Table, layout: Layout, words: NDArray[np.uint32], turns: NDArray[np.int64]
) -> Item:
    """Item ``number``; its signs and rotations are written to ``words`` and ``turns``."""
    group, low = layout.first_group + number // layout.runs, number % layout.runs * layout.run
    high, begin = min(layout.counters, low + layout.run), group * 128 * layout.width - table.first
    length = table.edges[-1]
    _fill_turns(turns, group, layout)
    low, high = _served(begin, turns, low, high, layout, length)
    if low < high:
        fill_words(words, group * layout.counters + low, high - low, layout.keys[0])
    top = max(0, -begin // layout.width)
    bottom = min(layout.depth, -((begin - length) // layout.width))
    return Item(begin, top, bottom, low, high, words, turns)


@compiled
def _columns(item: Item, layout: Layout, part: int) -> tuple[int, int]:
    """The columns left, ..., right - 1 that part ``part`` of the item's outputs are signs of."""
    skipped = part * layout.counters
    return item.low + skipped, min(layout.width, item.high + skipped)


@kernel
def project(start: int, stop: int, table: Table, sums: NDArray[np.float32], layout: Layout) -> None:
    """sums[group - first_group, c] += sign * fl(factor * change), rows in order.

    Args:
        start, stop: of items start, ..., stop - 1.
        sums: float32, shape (groups, width).
    """
    words, turns = np.empty((4, layout.run), np.uint32), np.empty(128, np.int64)
    for number in range(start, stop):
        item = _prepared(number, table, layout, words, turns)
        own = sums[number // layout.runs]
        for part in range(128 // layout.depth if item.low < item.high else 0):
            columns = _columns(item, layout, part)
            r, n = item.top, 0
            while r < item.bottom:
                if _four_at_once(r, item, layout, table, n):
                    _project_four(own, columns, part, r, item, layout, table, n)
                    r += 4
                else:
                    n = _project_row(own, columns, part, r, item, layout, table, n)
                    r += 1


@compiled
def _project_row(
    own: NDArray[np.float32],
    columns: tuple[int, int],
    part: int,
    r: int,
    item: Item,
    layout: Layout,
    table: Table,
    n: int,
) -> int:
    """Row r of the columns columns[0], ..., columns[1] - 1.

    Segment n is likely to have its first element; returns the one that has its last.
    """
    (left, right), bit = columns, part * layout.depth + r
    plane, shift = at(bit >> 5), np.uint32(31 - (bit & 31))
    begin, length = item.begin + r * layout.width, table.edges[-1]
    for wrapped in range(2):
        place, first, last = _stretch(
            wrapped, begin, item.turns[r], left, right, layout.width, length
        )
        while first < last:
            n = holder(table.edges, place + first, n)
            cut = min(last, table.edges[n + 1] - place)
            if table.places[n] == HOLE:
                first = cut
                continue
            element = place + first - table.edges[n]
            cut, power, column = row_of(table.scaling, n, element, first, cut)
            places = table.places[n] + place, table.places_before[n] + place, column
            _add_changes(own, table, n, places, power, first, cut, item.words, left, plane, shift)
            first = cut
    return n


@compiled
def _add_changes(
    own: NDArray[np.float32],
    table: Table,
    n: int,
    places: tuple[int, int, int],
    power: np.float32,
    first: int,
    last: int,
    words: NDArray[np.uint32],
    left: int,
    plane: np.uint64,
    shift: np.uint32,
) -> None:
    """own[c] += sign * fl(factor * change), c = first, ..., last - 1.

    Args:
        places: of the element, of the one before training and of its column, less c.
        power: of the row that all of them are in.
    """
    memory, memory_before, factor = table.memory, table.memory_before, table.factors[n]
    there, there_before, column = places
    for c in range(first, last):
        after = widen(memory[at(there + c)])
        change = less(after, memory_before, at(there_before + c)) * factor
        change = times(change, table.scaling, power, at(column + c))
        own[at(c)] += signed(change, words[plane, at(c - left)], shift)


@compiled
def _four_at_once(r: int, item: Item, layout: Layout, table: Table, n: int) -> bool:
    """Whether rows r, ..., r + 3 are long, all segment n's, and bits of one word.

    With elements before training there would be too many streams of memory to be vectorised, with
    factors too many of everything.
    """
    begin = item.begin + r * layout.width
    inside = table.edges[n] <= begin and begin + 4 * layout.width <= table.edges[n + 1]
    alone = table.memory_before is None and table.scaling is None
    inside = inside and table.places[n] != HOLE
    return alone and layout.width >= layout.long and r % 4 == 0 and inside


@compiled
def _project_four(
    own: NDArray[np.float32],
    columns: tuple[int, int],
    part: int,
    r: int,
    item: Item,
    layout: Layout,
    table: Table,
    n: int,
) -> None:
    """Four rows as ``_project_row``, so that sums and signs are read and written once for four.

    Between one rotation's wrap and the next, each row's stretch of memory is contiguous.
    """
    left, right = columns
    bit, width, turns = part * layout.depth + r, layout.width, item.turns[r : r + 4]
    plane, shift = at(bit >> 5), np.uint32(31 - (bit & 31))
    cuts = np.sort(np.minimum(np.maximum(turns, left), right))
    there = table.places[n] + item.begin + r * width
    first = left
    for stretch in range(5):
        last = cuts[stretch] if stretch < 4 else right
        p0 = there - turns[0] + (width if first < turns[0] else 0)
        p1 = there + width - turns[1] + (width if first < turns[1] else 0)
        p2 = there + 2 * width - turns[2] + (width if first < turns[2] else 0)
        p3 = there + 3 * width - turns[3] + (width if first < turns[3] else 0)
        places = p0, p1, p2, p3
        _add_four(
            own, table.memory, places, table.factors[n], first, last, item.words, left, plane, shift
        )
        first = last


@compiled
def _add_four(
    own: NDArray[np.float32],
    memory: NDArray[Any],
    places: tuple[int, int, int, int],
    factor: np.float32,
    first: int,
    last: int,
    words: NDArray[np.uint32],
    left: int,
    plane: np.uint64,
    shift: np.uint32,
) -> None:
    """own[c] += sign * fl(factor * memory[place + c]) of four places in turn."""
    p0, p1, p2, p3 = places
    for c in range(first, last):
        word = words[plane, at(c - left)]
        total = own[at(c)]
        total += signed(widen(memory[at(p0 + c)]) * factor, word, shift)
        total += signed(widen(memory[at(p1 + c)]) * factor, word, shift - np.uint32(1))
        total += signed(widen(memory[at(p2 + c)]) * factor, word, shift - np.uint32(2))
        total += signed(widen(memory[at(p3 + c)]) * factor, word, shift - np.uint32(3))
        own[at(c)] = total


@kernel
def reconstruct(
    start: int, stop: int, table: Table, values: NDArray[np.float32], layout: Layout
) -> None:
    """element += sign * fl(factor * value of its column), of items start, ..., stop - 1.

    Args:
        values: float32, shape (width,).
    """
    words, turns = np.empty((4, layout.run), np.uint32), np.empty(128, np.int64)
    for number in range(start, stop):
        item = _prepared(number, table, layout, words, turns)
        for part in range(128 // layout.depth if item.low < item.high else 0):
            left, right = _columns(item, layout, part)
            if left < right:
                _add_columns(values[left:right], left, right, part, item, layout, table)


@compiled
def _add_columns(
    own: NDArray[np.float32],
    left: int,
    right: int,
    part: int,
    item: Item,
    layout: Layout,
    table: Table,
) -> None:
    """The columns left, ..., right - 1 of all rows; own[0] is the value of column ``left``."""
    n = 0
    for r in range(item.top, item.bottom):
        bit = part * layout.depth + r
        plane, shift = at(bit >> 5), np.uint32(31 - (bit & 31))
        begin, length = item.begin + r * layout.width, table.edges[-1]
        for wrapped in range(2):
            place, first, last = _stretch(
                wrapped, begin, item.turns[r], left, right, layout.width, length
            )
            while first < last:
                n = holder(table.edges, place + first, n)
                cut = min(last, table.edges[n + 1] - place)
                if table.places[n] == HOLE:
                    first = cut
                    continue
                element, low = place + first - table.edges[n], first - left
                high, power, column = row_of(table.scaling, n, element, low, cut - left)
                factor, there = table.factors[n], table.places[n] + place + left
                places, cut = (there, column), high + left
                _add(table, places, power, own, factor, low, high, item.words, plane, shift)
                first = cut


@compiled
def _add(
    table: Table,
    places: tuple[int, int],
    power: np.float32,
    values: NDArray[np.float32],
    factor: np.float32,
    first: int,
    last: int,
    words: NDArray[np.uint32],
    plane: np.uint64,
    shift: np.uint32,
) -> None:
    """memory[places[0] + c] += sign * fl(factor * values[c]), c = first, ..., last - 1.

    The sign is bit 31 of words[plane, c] << shift. (A function of its own is vectorised.) Before
    it is added, that is multiplied by the power of the row and that of column places[1] + c, if
    elements are scaled.
    """
    memory, (there, column) = table.memory, places
    for c in range(first, last):
        change = signed(values[at(c)] * factor, words[plane, at(c)], shift)
        change = times(change, table.scaling, power, at(column + c))
        stored = memory[at(there + c)]
        memory[at(there + c)] = narrow(widen(stored) + change, stored)
