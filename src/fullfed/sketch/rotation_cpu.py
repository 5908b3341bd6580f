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
from fullfed.sketch.lanes_cpu import LANES
from fullfed.sketch.philox_cpu import fill_words
from fullfed.sketch.scalars_cpu import at, signed

_GROUP = 128 * 128  # elements whose signs are made at once
_NONE = -1  # no signs
_side = njit(side)


@njit
def bounds(block, padded):
    """Where a block begins, and its length."""
    first = block * BLOCK
    return first, min(BLOCK, padded - first)


@njit
def side_of(length):
    """C of a block of this length."""
    return _side(length)


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
    size = side_of(length)
    one, scale = np.float32(1), np.float32(1 / np.sqrt(size))
    early, middle, late = element
    _neighbours(vector, first, length, size, 1, (one, early), (scale, middle), keys)
    _distant(vector, first, length, size)
    _neighbours(vector, first, length, size, 1, (scale, late), (scale, _NONE), keys)


@njit
def rotate_back(vector, first, length, element, keys, half):
    """The inverse of ``rotate``, but for roundings.

    Of the first transform, levels below ``half`` have been done.
    """
    size = side_of(length)
    one, scale = np.float32(1), np.float32(1 / np.sqrt(size))
    early, middle, late = element
    _neighbours(vector, first, length, size, half, (one, _NONE), (scale, late), keys)
    _distant(vector, first, length, size)
    _neighbours(vector, first, length, size, 1, (scale, middle), (scale, early), keys)


@njit
def _neighbours(vector, first, length, size, half, before, after, keys):
    """The transform of ``size`` neighbours, from level ``half`` on, between two products.

    A product is a factor, and the element from which on signs are, a multiple of ``size`` or _NONE.
    """
    words, made = np.empty((2, 4, 128), np.uint32), np.full(2, _NONE, np.int64)
    for run in range(0, length, size):
        place = first + run
        for late in range(2):
            factor, offset = after if late else before
            if late:
                transform(vector, place, place + size, half)
            if offset != _NONE:
                group, element = (offset + run) // _GROUP, (offset + run) % _GROUP
                if made[late] != group:
                    fill_words(words[late], group * 128, 128, keys, 0)
                    made[late] = group
                _multiply(vector, place, size, factor, words[late], element)
            elif factor != 1:
                for i in range(place, place + size):
                    vector[at(i)] *= factor


@njit
def _multiply(vector, first, count, factor, words, element):
    """vector[first], ... times the factor and the signs of elements ``element``, ... of a group."""
    for start in range(0, count, 128):
        row, column = (element + start) >> 7, (element + start) & 127
        shift = np.uint32(31 - (row & 31))
        for i in range(min(count - start, 128)):
            place, word = at(first + start + i), words[at(row >> 5), at(column + i)]
            vector[place] = signed(vector[place] * factor, word, shift)


@njit
def _distant(vector, first, length, size):
    """The additions of the transform of ``size`` entries at equal distances."""
    apart = length // size
    if apart % LANES == 0:
        transform(vector, first, first + length, apart)
        return
    wide = apart + LANES - apart % LANES
    held = np.zeros(size * wide, np.float32)
    for row in range(size):
        for column in range(apart):
            held[at(row * wide + column)] = vector[at(first + row * apart + column)]
    transform(held, 0, size * wide, wide)
    for row in range(size):
        for column in range(apart):
            vector[at(first + row * apart + column)] = held[at(row * wide + column)]
