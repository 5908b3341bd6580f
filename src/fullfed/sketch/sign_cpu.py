"""The sign basis in numba: one pass over memory, parallel over groups of rows and runs of columns."""

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.bits_cpu import signed
from fullfed.sketch.philox_cpu import fill_words

_SHIFT = np.uint64(32)


@njit(nogil=True, cache=True)
def fill_rotations(turns, group, width, key, rotated):  # type: ignore[no-untyped-def]
    """turns[r] = rotation of row r of the group, int64, shape (128,)."""
    words = np.empty((4, 32), np.uint32)
    fill_words(words, group * 32, 32, key)
    for r in range(128):
        word = np.uint64(words[r % 4, r // 4])
        turns[r] = np.int64((word * np.uint64(width)) >> _SHIFT) if rotated else 0


@njit(nogil=True, cache=True)
def _add_signed(target, source, words, shift):  # type: ignore[no-untyped-def]
    for i in range(target.size):
        target[i] += signed(source[i], words[i], shift)


@njit(nogil=True, cache=True)
def sweep(  # type: ignore[no-untyped-def]
    start, stop, elements, offset, sums, first_group, runs, run, keys, rotated, into_sums
):
    """Items start .. stop - 1 of (group of 128 rows) x (run of columns).

    A row meets a run of columns in two stretches of memory, before and after the end of its
    rotation. With ``into_sums`` elements are added to sums[group - first_group, column], else
    sums[0, column] to the elements.
    """
    width, length = sums.shape[1], elements.size
    words, turns = np.empty((4, run), np.uint32), np.empty(128, np.int64)
    for item in range(start, stop):
        group = first_group + item // runs
        low = (item % runs) * run
        high = min(width, low + run)
        line = sums[item // runs] if into_sums else sums[0]
        fill_words(words, group * width + low, high - low, keys[0])
        fill_rotations(turns, group, width, keys[1], rotated)
        for r in range(128):
            begin = (group * 128 + r) * width - offset
            if begin >= length:
                break
            bits, shift = words[r >> 5], np.uint32(31 - (r & 31))
            for wrapped in range(2):
                place = begin - turns[r] + wrapped * width
                first = max(low, 0 if wrapped else turns[r], -place)
                last = min(high, turns[r] if wrapped else width, length - place)
                if first < last:
                    memory = elements[place + first : place + last]
                    columns = line[first:last]
                    part = bits[first - low : last - low]
                    if into_sums:
                        _add_signed(columns, memory, part, shift)
                    else:
                        _add_signed(memory, columns, part, shift)
