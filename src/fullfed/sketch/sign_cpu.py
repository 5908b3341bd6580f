"""The sign basis in numba: one pass over memory, parallel over rows and columns."""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.philox_cpu import fill_words
from fullfed.sketch.scalars_cpu import at, narrow, signed, widen

_SHIFT = np.uint64(32)


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
def _touched(begin, turns, low, high, width, length):
    """The columns of the run from the first to the last that meets the tensor in some row."""
    least, most = high, low
    for r in range(128):
        for wrapped in range(2):
            _, first, last = _stretch(
                wrapped, begin + r * width, turns[r], low, high, width, length
            )
            if first < last:
                least, most = min(least, first), max(most, last)
    return least, most


@njit(nogil=True, cache=True)
def project(
    start, stop, after, before, weight, offset, sums, first_group, runs, run, long, keys, rotated
):
    """sums[group - first_group, column] += sign * change, rows in order, long ones by fours.

    Items start .. stop - 1 of (group of 128 rows) x (run of columns).
    """
    width, length = sums.shape[1], after.size
    words, turns = np.empty((4, run), np.uint32), np.empty(128, np.int64)
    for item in range(start, stop):
        group, low = first_group + item // runs, (item % runs) * run
        high, begin = min(width, low + run), group * 128 * width - offset
        line = sums[item // runs]
        _fill_rotations(turns, group, width, keys, rotated)
        low, high = _touched(begin, turns, low, high, width, length)
        if low >= high:
            continue
        fill_words(words, group * width + low, high - low, keys, 0)
        for quad in range(0, 128, 4):
            place = begin + quad * width
            if width >= long and place >= 0 and place + 4 * width <= length:
                _project_quad(
                    sums, item // runs, low, high, words, quad, turns, after, before, weight, place
                )
                continue
            for r in range(quad, quad + 4):
                shift = np.uint32(31 - (r & 31))
                for wrapped in range(2):
                    place, first, last = _stretch(
                        wrapped, begin + r * width, turns[r], low, high, width, length
                    )
                    for i in range(first, last):
                        change = _change(after, before, weight, at(place + i))
                        line[at(i)] += signed(change, words[r >> 5, at(i - low)], shift)


@njit
def _project_quad(sums, group, low, high, words, quad, turns, after, before, weight, begin):
    """Four whole rows at once, so that sums and signs are read once for the four.

    Between one rotation's end and the next the four stretches of memory are contiguous.
    """
    width, plane = sums.shape[1], at(quad >> 5)
    cuts = np.sort(np.minimum(np.maximum(turns[quad : quad + 4], low), high))
    s0, s1 = np.uint32(31 - (quad & 31)), np.uint32(30 - (quad & 31))
    s2, s3 = np.uint32(29 - (quad & 31)), np.uint32(28 - (quad & 31))
    first = low
    for part in range(5):
        last = cuts[part] if part < 4 else high
        p0 = begin - turns[quad] + (width if first < turns[quad] else 0)
        p1 = begin + width - turns[quad + 1] + (width if first < turns[quad + 1] else 0)
        p2 = begin + 2 * width - turns[quad + 2] + (width if first < turns[quad + 2] else 0)
        p3 = begin + 3 * width - turns[quad + 3] + (width if first < turns[quad + 3] else 0)
        for i in range(first, last):
            word = words[plane, at(i - low)]
            total = sums[group, at(i)]
            total += signed(_change(after, before, weight, at(p0 + i)), word, s0)
            total += signed(_change(after, before, weight, at(p1 + i)), word, s1)
            total += signed(_change(after, before, weight, at(p2 + i)), word, s2)
            total += signed(_change(after, before, weight, at(p3 + i)), word, s3)
            sums[group, at(i)] = total
        first = last


@njit(nogil=True, cache=True)
def reconstruct(
    start, stop, elements, offset, values, scale, first_group, runs, run, keys, rotated
):
    """element += sign * scale * values[column]; items as project."""
    width, length = values.size, elements.size
    words, turns = np.empty((4, run), np.uint32), np.empty(128, np.int64)
    for item in range(start, stop):
        group, low = first_group + item // runs, (item % runs) * run
        high, begin = min(width, low + run), group * 128 * width - offset
        _fill_rotations(turns, group, width, keys, rotated)
        low, high = _touched(begin, turns, low, high, width, length)
        if low >= high:
            continue
        fill_words(words, group * width + low, high - low, keys, 0)
        for r in range(128):
            shift = np.uint32(31 - (r & 31))
            for wrapped in range(2):
                place, first, last = _stretch(
                    wrapped, begin + r * width, turns[r], low, high, width, length
                )
                for i in range(first, last):
                    stored = elements[at(place + i)]
                    step = values[at(i)] * scale
                    change = signed(step, words[r >> 5, at(i - low)], shift)
                    elements[at(place + i)] = narrow(widen(stored) + change, stored)


@njit(nogil=True, cache=True)
def fold(start, stop, rows, sums):
    """sums[g] = rows[128 g] + rows[128 g + 1] + ... from zero, for columns start .. stop - 1."""
    for group in range(sums.shape[0]):
        for column in range(start, stop):
            sums[group, column] = np.float32(0)
        for row in range(128 * group, min(128 * group + 128, rows.shape[0])):
            for column in range(start, stop):
                sums[group, column] += rows[row, column]
