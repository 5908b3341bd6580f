"""The sign basis in numba: one pass over memory, parallel over rows and columns.

A ``table`` is a pieces_cpu.Table.
"""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.columns_cpu import columns, room_for
from fullfed.sketch.lanes_cpu import prefetch
from fullfed.sketch.philox_cpu import fill_words
from fullfed.sketch.pieces_cpu import holder, piece_at
from fullfed.sketch.scalars_cpu import at, narrow, signed, widen

_SHIFT = np.uint64(32)
_FETCHED = 512  # elements of 16 bits whose memory is asked for at once
_LINE = 32  # of them in a cache line


@njit(nogil=True, cache=True)
def _fill_rotations(turns, group, width, keys, rotated):
    """turns[r] = rotation of row r of the group, int64, shape (128,)."""
    words = np.empty((4, 32), np.uint32)
    fill_words(words, group * 32, 32, keys, 1)
    for r in range(128):
        word = np.uint64(words[r % 4, r // 4])
        turns[r] = np.int64((word * np.uint64(width)) >> _SHIFT) if rotated else 0


@njit
def _change(after, before, weight, i):
    """fl(weight * fl(after - before)) of one element; before may be None."""
    if before is None:
        return widen(after[i]) * weight
    return (widen(after[i]) - widen(before[i])) * weight


@njit
def _stretch(wrapped, begin, turn, low, high, width, length):
    """Columns first .. last - 1 of a run meet memory from place + first on; empty if last <= first.

    A row starting at ``begin`` meets a run of columns in two stretches of memory, before and
    after the point where its rotation wraps.
    """
    place = begin - turn + wrapped * width
    first = max(low, 0 if wrapped else turn, -place)
    last = min(high, turn if wrapped else width, length - place)
    return place, first, last


@njit
def _touched(begin, turns, low, high, width, depth, counters, length):
    """The run's counters from the first to the last that serve elements of the pieces."""
    least, most = high, low
    for bit in range(128):
        skipped, r = (bit // depth) * counters, bit % depth
        right = min(width, high + skipped)
        for wrapped in range(2):
            _, first, last = _stretch(
                wrapped, begin + r * width, turns[r], low + skipped, right, width, length
            )
            if first < last:
                least, most = min(least, first - skipped), max(most, last - skipped)
    return least, most


@njit
def _span(edges, row, width, r, bottom, n):
    """Rows r .. until - 1 are all piece n's; until = r if pieces share r, which begins at row.

    ``n`` is a likely piece.
    """
    if row < 0 or row + width > edges[-1]:
        return r, n
    n = holder(edges, row, n)
    return min(bottom, r + (edges[n + 1] - row) // width), n


@njit
def _prepare(item, table, words, turns, width, first_group, depth, counters, runs, run, keys, turn):
    """Signs and rotations of an item of (group of 128 rows) x (run of counters).

    A counter's bits are signs of ``depth`` rows in one column, of as many in the column
    ``counters`` further, and so on. Returns where row 0 begins, the rows from the first to past the
    last that have elements of the pieces, and such counters.
    """
    group, low = first_group + item // runs, (item % runs) * run
    high, begin = min(counters, low + run), group * 128 * width - table.first
    _fill_rotations(turns, group, width, keys, turn)
    low, high = _touched(begin, turns, low, high, width, depth, counters, table.edges[-1])
    if low < high:
        fill_words(words, group * counters + low, high - low, keys, 0)
    top, bottom = max(0, -begin // width), min(depth, -((begin - table.edges[-1]) // width))
    return begin, top, bottom, low, high


@njit(nogil=True, cache=True)
def project(start, stop, table, sums, long, first_group, depth, counters, runs, run, keys, rotated):
    """sums[group - first_group, column] += sign * change, rows in order, long ones by fours.

    Of items start .. stop - 1.
    """
    width = sums.shape[1]
    words, turns = np.empty((4, run), np.uint32), np.empty(128, np.int64)
    for item in range(start, stop):
        begin, top, bottom, low, high = _prepare(
            item, table, words, turns, width, first_group, depth, counters, runs, run, keys, rotated
        )
        for part in range(128 // depth if low < high else 0):
            left, right = low + part * counters, min(width, high + part * counters)
            r, n, bits = top, 0, part * depth
            while r < bottom:
                row = begin + r * width
                until, n = _span(table.edges, row, width, r, bottom, n)
                if until == r:
                    _project_cut(
                        sums, item // runs, left, right, words, bits + r, turns[r], table, n, row
                    )
                else:
                    _project_whole(
                        *(sums, item // runs, left, right, words, bits, turns, r, until),
                        *(table, n, begin, long),
                    )
                r = max(until, r + 1)


@njit
def _project_cut(sums, group, left, right, words, bit, turn, table, n, begin):
    """The columns left .. right - 1 of a row that pieces share."""
    width, plane, shift = sums.shape[1], at(bit >> 5), np.uint32(31 - (bit & 31))
    for wrapped in range(2):
        place, first, last = _stretch(wrapped, begin, turn, left, right, width, table.edges[-1])
        while first < last:
            n = holder(table.edges, place + first, n)
            after = piece_at(table.after, table.edges, n, table.stored)
            before = piece_at(table.before, table.edges, n, table.stored_before)
            weight, here = table.factors[n], place - table.edges[n]
            cut = min(last, table.edges[n + 1] - place)
            for i in range(first, cut):
                change = _change(after, before, weight, at(here + i))
                sums[group, at(i)] += signed(change, words[plane, at(i - left)], shift)
            first = cut


@njit
def _project_whole(sums, group, left, right, words, bits, turns, r, stop, table, n, begin, long):
    """The columns left .. right - 1 of rows r .. stop - 1, all of piece n, long ones by fours."""
    width = sums.shape[1]
    after = piece_at(table.after, table.edges, n, table.stored)
    before = piece_at(table.before, table.edges, n, table.stored_before)
    weight, begin = table.factors[n], begin - table.edges[n]
    while r < stop:
        # With before it would have too many streams of memory to be vectorised.
        if before is None and width >= long and r % 4 == 0 and r + 4 <= stop:
            _project_quad(
                sums,
                group,
                left,
                right,
                words,
                bits + r,
                turns,
                r,
                after,
                weight,
                begin + r * width,
            )
            r += 4
            continue
        plane, shift = at((bits + r) >> 5), np.uint32(31 - ((bits + r) & 31))
        for wrapped in range(2):
            place, first, last = _stretch(
                wrapped, begin + r * width, turns[r], left, right, width, after.size
            )
            for i in range(first, last):
                change = _change(after, before, weight, at(place + i))
                sums[group, at(i)] += signed(change, words[plane, at(i - left)], shift)
        r += 1


@njit
def _project_quad(sums, group, left, right, words, bit, turns, quad, after, weight, begin):
    """Four whole rows at once, so that sums and signs are read once for the four.

    Between one rotation's end and the next the four stretches of memory are contiguous.
    """
    width, plane = sums.shape[1], at(bit >> 5)
    cuts = np.sort(np.minimum(np.maximum(turns[quad : quad + 4], left), right))
    s0, s1 = np.uint32(31 - (bit & 31)), np.uint32(30 - (bit & 31))
    s2, s3 = np.uint32(29 - (bit & 31)), np.uint32(28 - (bit & 31))
    first = left
    for part in range(5):
        last = cuts[part] if part < 4 else right
        p0 = begin - turns[quad] + (width if first < turns[quad] else 0)
        p1 = begin + width - turns[quad + 1] + (width if first < turns[quad + 1] else 0)
        p2 = begin + 2 * width - turns[quad + 2] + (width if first < turns[quad + 2] else 0)
        p3 = begin + 3 * width - turns[quad + 3] + (width if first < turns[quad + 3] else 0)
        for i in range(first, last):
            word = words[plane, at(i - left)]
            total = sums[group, at(i)]
            total += signed(widen(after[at(p0 + i)]) * weight, word, s0)
            total += signed(widen(after[at(p1 + i)]) * weight, word, s1)
            total += signed(widen(after[at(p2 + i)]) * weight, word, s2)
            total += signed(widen(after[at(p3 + i)]) * weight, word, s3)
            sums[group, at(i)] = total
        first = last


@njit(nogil=True, cache=True)
def reconstruct(
    start, stop, table, values, shares, width, first, depth, counters, runs, run, keys, rotated
):
    """element += sign * factor * value of its column.

    Of shares start .. stop - 1: each item, as in project, is dealt in so many ``shares``, of the
    columns that are ``counters`` apart. Values are float32, shape (width,), or packed.Packed.
    """
    room = room_for(values, run)
    words, turns = np.empty((4, run), np.uint32), np.empty(128, np.int64)
    for number in range(start, stop):
        item, share, parts = number // shares, number % shares, 128 // depth
        begin, top, bottom, low, high = _prepare(
            item, table, words, turns, width, first, depth, counters, runs, run, keys, rotated
        )
        for part in range(share * parts // shares, (share + 1) * parts // shares):
            left, right = low + part * counters, min(width, high + part * counters)
            if left >= right:
                continue
            own = columns(values, left, right, room)
            r, n, bits = top, 0, part * depth
            while r < bottom:
                row = begin + r * width
                until, n = _span(table.edges, row, width, r, bottom, n)
                if until == r:
                    _reconstruct_cut(
                        *(own, left, right, words, bits + r, turns[r], table, n, row, width)
                    )
                else:
                    _reconstruct_whole(
                        *(own, left, right, words, bits, turns, r, until),
                        *(table, n, begin, width),
                    )
                r = max(until, r + 1)


@njit
def _reconstruct_cut(own, left, right, words, bit, turn, table, n, begin, width):
    """As _project_cut; own[0] is the value of column ``left``."""
    for wrapped in range(2):
        place, first, last = _stretch(wrapped, begin, turn, left, right, width, table.edges[-1])
        while first < last:
            n = holder(table.edges, place + first, n)
            cut = min(last, table.edges[n + 1] - place)
            elements = piece_at(table.after, table.edges, n, table.stored)
            scale, start = table.factors[n], place - table.edges[n]
            if elements.itemsize < 4:
                _add_fetching(elements, own, scale, first, cut, words, bit, left, start)
            else:
                _add(elements, own, scale, first, cut, words, bit, left, start)
            first = cut


@njit
def _reconstruct_whole(own, left, right, words, bits, turns, start, stop, table, n, begin, width):
    """The columns left .. right - 1 of rows start .. stop - 1, all of piece n."""
    elements = piece_at(table.after, table.edges, n, table.stored)
    scale, begin = table.factors[n], begin - table.edges[n]
    fetching = elements.itemsize < 4 and width > _FETCHED
    for r in range(start, stop):
        for wrapped in range(2):
            place, first, last = _stretch(
                wrapped, begin + r * width, turns[r], left, right, width, elements.size
            )
            if fetching:
                _add_fetching(elements, own, scale, first, last, words, bits + r, left, place)
            else:
                _add(elements, own, scale, first, last, words, bits + r, left, place)


@njit
def _add(elements, own, scale, first, last, words, bit, left, place):
    """Columns first .. last - 1 of a row, their elements from place + first on."""
    plane, shift = at(bit >> 5), np.uint32(31 - (bit & 31))
    start = place + left
    for i in range(first - left, last - left):
        stored = elements[at(start + i)]
        change = signed(own[at(i)] * scale, words[plane, at(i)], shift)
        elements[at(start + i)] = narrow(widen(stored) + change, stored)


@njit
def _add_fetching(elements, own, scale, first, last, words, bit, left, place):
    """As _add, asking for memory ahead.

    A line of 16-bit elements takes so many instructions that too few lines are on their way else.
    """
    for begin in range(first, last, _FETCHED):
        end = min(last, begin + _FETCHED)
        for i in range(end, min(last, end + _FETCHED), _LINE):
            prefetch(elements, place + i)
        _add(elements, own, scale, begin, end, words, bit, left, place)


@njit(nogil=True, cache=True)
def fold(start, stop, rows, sums):
    """sums[g] = rows[128 g] + rows[128 g + 1] + ... from zero, for columns start .. stop - 1."""
    for group in range(sums.shape[0]):
        for column in range(start, stop):
            sums[group, column] = np.float32(0)
        for row in range(128 * group, min(128 * group + 128, rows.shape[0])):
            for column in range(start, stop):
                sums[group, column] += rows[row, column]
