"""Encoding in numba: a block is rotated and packed while it is in a core's cache."""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.blocks import BLOCK
from fullfed.sketch.lanes_cpu import LANES, above_zero, add_absolutes, add_squares
from fullfed.sketch.packed import LARGEST, LEVEL
from fullfed.sketch.rotation_cpu import bounds, rotate
from fullfed.sketch.scalars_cpu import at, bits_of

_ABSOLUTE = np.uint32(0x7FFFFFFF)


@njit(nogil=True, cache=True)
def encode(start, stop, numbers, packed):
    """Blocks start to stop - 1 of ``numbers``, float32, and zeros up to packed.length.

    Each one's scale is its energy over the product with what is sent of it.
    """
    held, nearest = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.uint8)
    codes, bits, sent, levels = packed.codes, packed.bits, packed.sent, packed.levels
    for block in range(start, stop):
        first, length = bounds(block, packed.length)
        energy = _take(numbers, first, length, held)
        rotate(held, length, first, packed.keys)
        if packed.says == LARGEST:
            place = (first >> (bits - 1)) * bits >> 3
            along = pack_largest(held, length, codes, place, bits, sent)
        elif packed.says == LEVEL:
            _find_nearest(held, length, levels, np.sqrt(energy / length), nearest)
            place = first * bits >> 3
            along = pack_levels(held, length, codes, place, bits, sent, levels, nearest)
        else:
            along = pack_signs(held, length, codes, first >> 3)
        packed.scales[block] = energy / along if along > 0 else 0


@njit
def _take(numbers, first, length, held):
    """held = ``length`` numbers from the first on, and zeros; their energy in float64."""
    count, sums = min(length, len(numbers) - first), np.zeros(LANES, np.float64)
    for k in range(count):
        held[at(k)] = numbers[at(first + k)]
    for k in range(count, length):
        held[at(k)] = np.float32(0)
    for begin in range(0, count - count % LANES, LANES):
        add_squares(sums, held, begin)
    for k in range(count - count % LANES, count):
        sums[0] += np.float64(held[at(k)]) ** 2
    return sums.sum()


@njit
def pack_signs(held, length, codes, place):
    """A byte for 8 numbers from codes[place] on; returns the sum of absolute values."""
    sums, rest = np.zeros(LANES, np.float64), 0
    for begin in range(0, length - length % LANES, LANES):
        codes[at(place + (begin >> 3))] = above_zero(held, begin)
        add_absolutes(sums, held, begin)
    for k in range(length - length % LANES, length):
        rest |= (held[at(k)] > 0) << (7 - (k & 7))
        sums[0] += np.float64(abs(held[at(k)]))
    if length % LANES:
        codes[at(place + (length >> 3))] = rest
    return sums.sum()


@njit
def _find_nearest(held, length, levels, root_mean_square, nearest):
    """nearest[k] = the number of the level nearest to held[k] of root mean square 1."""
    nearest[:length] = 0
    for n in range(len(levels) - 1):
        bound = np.float32((levels[n] + levels[n + 1]) / np.float32(2) * root_mean_square)
        for k in range(length):
            nearest[at(k)] += held[at(k)] > bound


@njit
def pack_levels(held, length, codes, place, bits, sent, levels, nearest):
    """sent[nearest[k]] for each number from codes[place] on; returns <held, levels>."""
    waiting, count, along = 0, 0, 0.0
    for k in range(length):
        level = nearest[at(k)]
        along += np.float64(held[at(k)]) * np.float64(levels[at(level)])
        code = np.int64(sent[at(level)])
        place, waiting, count = _write(codes, place, waiting, count, bits, code)
    _finish(codes, place, waiting, count)
    return along


@njit
def pack_largest(held, length, codes, place, bits, sent):
    """From codes[place] on; returns the sum of the largest absolute values."""
    waiting, count, along = 0, 0, 0.0
    group = 1 << (bits - 1)
    for begin in range(0, length, group):
        most = np.uint32(0)
        for k in range(begin, begin + group):  # absolute values have the order of their bits
            most = max(most, bits_of(held[at(k)]) & _ABSOLUTE)
        largest = 0
        while bits_of(held[at(begin + largest)]) & _ABSOLUTE != most:
            largest += 1
        value = held[at(begin + largest)]
        along += np.float64(abs(value))
        code = (np.int64(sent[at(largest)]) << 1) | (value > 0)
        place, waiting, count = _write(codes, place, waiting, count, bits, code)
    _finish(codes, place, waiting, count)
    return along


@njit
def _write(codes, place, waiting, count, bits, code):
    """Append a code to ``count`` waiting bits; full bytes go to codes[place], ..."""
    waiting, count = (waiting << bits) | code, count + bits
    while count >= 8:
        codes[at(place)] = np.uint8((waiting >> (count - 8)) & 255)
        place, count = place + 1, count - 8
    return place, waiting & 255, count


@njit
def _finish(codes, place, waiting, count):
    """The last bits, and zeros."""
    if count:
        codes[at(place)] = np.uint8((waiting << (8 - count)) & 255)
