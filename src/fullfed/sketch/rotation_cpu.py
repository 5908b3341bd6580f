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
from fullfed.sketch.square_cpu import rotate_square, rotate_square_back

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
def rotate(held, length, number, keys):
    """A block.

    Args:
        held: float32; the block is the first ``length`` numbers, a multiple of C.
        number: of its first entry, counted over all blocks.
        keys: uint64, shape (1, 4), of the signs.
    """
    if length == BLOCK:
        rotate_square(held, number, keys)
        return
    size = side_of(length)
    one, scale = np.float32(1), np.float32(1 / np.sqrt(size))
    early, middle, late = _elements(number, length)
    _neighbours(held, length, size, (one, early), (scale, middle), keys)
    _distant(held, length, size)
    _neighbours(held, length, size, (scale, late), (scale, _NONE), keys)


@njit
def rotate_back(held, length, number, keys, target, spot):
    """The inverse of ``rotate``, but for roundings, to target[spot], ...; ``held`` is lost."""
    if length == BLOCK:
        rotate_square_back(held, number, keys, target, spot)
        return
    size = side_of(length)
    one, scale = np.float32(1), np.float32(1 / np.sqrt(size))
    early, middle, late = _elements(number, length)
    _neighbours(held, length, size, (one, _NONE), (scale, late), keys)
    _distant(held, length, size)
    _neighbours(held, length, size, (scale, middle), (scale, early), keys)
    for n in range(length):
        target[at(spot + n)] = held[at(n)]


@njit
def _elements(number, length):
    """The elements of a block's first entry in the three directions of signs; multiples of C."""
    return 3 * number, 3 * number + length, 3 * number + 2 * length


@njit
def _neighbours(held, length, size, before, after, keys):
    """The transform of ``size`` neighbours between two products.

    A product is a factor, and the element from which on signs are, a multiple of ``size`` or _NONE.
    """
    words, made = np.empty((2, 4, 128), np.uint32), np.full(2, _NONE, np.int64)
    for place in range(0, length, size):
        for late in range(2):
            factor, offset = after if late else before
            if late:
                transform(held, place, place + size, 1)
            if offset != _NONE:
                group, element = (offset + place) // _GROUP, (offset + place) % _GROUP
                if made[late] != group:
                    fill_words(words[late], group * 128, 128, keys, 0)
                    made[late] = group
                _multiply(held, place, size, factor, words[late], element)
            elif factor != 1:
                for i in range(place, place + size):
                    held[at(i)] *= factor


@njit
def _multiply(held, first, count, factor, words, element):
    """held[first], ... times the factor and the signs of elements ``element``, ... of a group."""
    for start in range(0, count, 128):
        row, column = (element + start) >> 7, (element + start) & 127
        shift = np.uint32(31 - (row & 31))
        for i in range(min(count - start, 128)):
            place, word = at(first + start + i), words[at(row >> 5), at(column + i)]
            held[place] = signed(held[place] * factor, word, shift)


@njit
def _distant(held, length, size):
    """The additions of the transform of ``size`` entries at equal distances."""
    apart = length // size
    if apart % LANES == 0:
        transform(held, 0, length, apart)
        return
    wide = apart + LANES - apart % LANES
    wider = np.zeros(size * wide, np.float32)
    for row in range(size):
        for column in range(apart):
            wider[at(row * wide + column)] = held[at(row * apart + column)]
    transform(wider, 0, size * wide, wide)
    for row in range(size):
        for column in range(apart):
            held[at(row * apart + column)] = wider[at(row * wide + column)]
