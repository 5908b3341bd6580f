"""Random rotations in numba, of blocks, each in a core's cache.

x <- H D'' H' D' H D x: three times random signs and Walsh-Hadamard transforms of C entries. H
transforms C neighbours at a time, H' C entries at equal distances over the whole block. After two
an entry is spread over all places, after three every place holds a sum of many, also for a block
that has few. Every operation is a float32 sum, difference or product of two numbers in a fixed
order, so the result has the same bits everywhere. docs/shared-randomness.md, section 9.
"""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.blocks import BLOCK, side
from fullfed.sketch.butterflies_cpu import transform
from fullfed.sketch.philox_cpu import fill_words
from fullfed.sketch.scalars_cpu import at, signed

_COLUMNS = 64  # that are transformed together
_GROUP = 128 * 128  # elements whose signs are made at once
_NONE = -1  # no signs
_side = njit(side)


@njit
def bounds(block, padded):
    """Where a block begins, and its length."""
    first = block * BLOCK
    return first, min(BLOCK, padded - first)


@njit
def elements(first, length):
    """The elements of a block's first entry in the three directions of signs."""
    return 3 * first, 3 * first + length, 3 * first + 2 * length


@njit
def rotate(vector, first, length, element, keys):
    """The block vector[first], ..., vector[first + length - 1].

    Args:
        vector: float32.
        first, length: of the block; ``length`` is a multiple of C.
        element: those of its first entry in the three directions of signs; multiples of C.
        keys: uint64, shape (1, 4), of the signs.
    """
    size = _side(length)
    _neighbours(vector, first, length, size, element[0], element[1], keys)
    _distant(vector, first, length, size)
    _neighbours(vector, first, length, size, element[2], _NONE, keys)


@njit
def rotate_back(vector, first, length, element, keys):
    """The inverse of ``rotate``, but for roundings."""
    size = _side(length)
    _neighbours(vector, first, length, size, _NONE, element[2], keys)
    _distant(vector, first, length, size)
    _neighbours(vector, first, length, size, element[1], element[0], keys)


@njit
def _neighbours(vector, first, length, size, before, after, keys):
    """Signs from element ``before`` on, the transform of ``size`` neighbours, signs from ``after``.

    Both are multiples of ``size``, or _NONE.
    """
    scale = np.float32(1 / np.sqrt(size))
    words, made = np.empty((2, 4, 128), np.uint32), np.full(2, _NONE, np.int64)
    for run in range(0, length, size):
        place = first + run
        for late in range(2):
            offset, factor = (after, scale) if late else (before, np.float32(1))
            if late:
                transform(vector, place, place + size, 1)
            if offset != _NONE:
                group, element = (offset + run) // _GROUP, (offset + run) % _GROUP
                if made[late] != group:
                    fill_words(words[late], group * 128, 128, keys, 0)
                    made[late] = group
                _multiply(vector, place, size, factor, words[late], element)
            elif late:
                for i in range(place, place + size):
                    vector[at(i)] *= scale


@njit
def _multiply(vector, first, count, scale, words, element):
    """vector[first], ... times the scale and the signs of elements ``element``, ... of a group."""
    for start in range(0, count, 128):
        row, column = (element + start) >> 7, (element + start) & 127
        shift = np.uint32(31 - (row & 31))
        for i in range(min(count - start, 128)):
            place, word = at(first + start + i), words[at(row >> 5), at(column + i)]
            vector[place] = signed(vector[place] * scale, word, shift)


@njit
def _distant(vector, first, length, size):
    """The transform of ``size`` entries at equal distances, 64 neighbours at a time."""
    apart, scale = length // size, np.float32(1 / np.sqrt(size))
    held = np.zeros(size * _COLUMNS, np.float32)
    for begin in range(first, first + apart, _COLUMNS):
        width = min(_COLUMNS, first + apart - begin)
        for row in range(size):
            for column in range(width):
                held[at(row * _COLUMNS + column)] = vector[at(row * apart + begin + column)]
        transform(held, 0, size * _COLUMNS, _COLUMNS)
        for row in range(size):
            for column in range(width):
                vector[at(row * apart + begin + column)] = held[at(row * _COLUMNS + column)] * scale
