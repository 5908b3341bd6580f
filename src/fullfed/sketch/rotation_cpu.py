"""Random rotations in numba (hadamard.py), three passes over memory."""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.butterflies_cpu import transform
from fullfed.sketch.philox_cpu import fill_words
from fullfed.sketch.scalars_cpu import at, signed

COLUMNS = 64  # that are transformed together: what is held of them fits a core's cache
_GROUP = 128 * 128  # elements whose signs are made at once
NONE = -1  # for ``before`` or ``after``: no signs


@njit
def _multiply(vector, first, size, scale, words, element):
    """vector[first], ... times the scale and the signs of elements ``element``, ... of a group."""
    for start in range(0, size, 128):
        row, column = (element + start) >> 7, (element + start) & 127
        shift = np.uint32(31 - (row & 31))
        for i in range(min(size - start, 128)):
            place, word = at(first + start + i), words[at(row >> 5), at(column + i)]
            vector[place] = signed(vector[place] * scale, word, shift)


@njit(nogil=True, cache=True)
def rotate_neighbours(start, stop, vector, size, scale, before, after, keys):
    """Signs from element ``before`` on, the transform of ``size`` neighbours, signs from ``after``.

    Of the runs start to stop - 1. ``before`` and ``after`` are multiples of ``size``, or NONE.
    """
    words, made = np.empty((2, 4, 128), np.uint32), np.full(2, NONE, np.int64)
    for n in range(start, stop):
        first = n * size
        for late in range(2):
            offset, factor = (after, scale) if late else (before, np.float32(1))
            if late:
                transform(vector, first, first + size, 1)
            if offset != NONE:
                group, element = (offset + first) // _GROUP, (offset + first) % _GROUP
                if made[late] != group:
                    fill_words(words[late], group * 128, 128, keys, 0)
                    made[late] = group
                _multiply(vector, first, size, factor, words[late], element)
            elif late:
                for i in range(first, first + size):
                    vector[at(i)] *= scale


@njit(nogil=True, cache=True)
def rotate_distant(start, stop, vector, size, scale):
    """The transform of ``size`` entries at equal distances, 64 neighbours at a time."""
    apart = len(vector) // size
    held = np.zeros(size * COLUMNS, np.float32)
    for group in range(start, stop):
        begin = group * COLUMNS
        width = min(COLUMNS, apart - begin)
        for row in range(size):
            for column in range(width):
                held[at(row * COLUMNS + column)] = vector[at(row * apart + begin + column)]
        transform(held, 0, size * COLUMNS, COLUMNS)
        for row in range(size):
            for column in range(width):
                vector[at(row * apart + begin + column)] = held[at(row * COLUMNS + column)] * scale
