"""Encoding in numba: a block is rotated and packed while it is in a core's cache.

Codes have no gaps, each byte's highest bit first. Kernels encode blocks start to stop - 1, and set
each one's scale to its energy over the product with what is sent of it. Their arguments are those
of decoding_cpu, with ``numbers`` as they are sent, shape (K,), and ``padded``, the n of all blocks.
"""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.blocks import BLOCK
from fullfed.sketch.lanes_cpu import LANES, above_zero, add_absolutes, add_squares
from fullfed.sketch.rotation_cpu import bounds, elements, rotate
from fullfed.sketch.scalars_cpu import at, bits_of

_ABSOLUTE = np.uint32(0x7FFFFFFF)


@njit(nogil=True, cache=True)
def encode_signs(start, stop, numbers, codes, scales, keys, padded):
    """A bit for what is above zero."""
    held = np.empty(BLOCK, np.float32)
    for block in range(start, stop):
        first, length = bounds(block, padded)
        energy = _take(numbers, first, length, held)
        rotate(held, 0, length, elements(first, length), keys)
        scales[block] = _scale(energy, pack_signs(held, length, codes, first >> 3))


@njit(nogil=True, cache=True)
def encode_levels(start, stop, numbers, codes, scales, keys, padded, bits, sent, levels):
    """The nearest level of each."""
    held, nearest = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.uint8)
    for block in range(start, stop):
        first, length = bounds(block, padded)
        energy = _take(numbers, first, length, held)
        rotate(held, 0, length, elements(first, length), keys)
        _find_nearest(held, length, levels, np.sqrt(energy / length), nearest)
        along = pack_levels(held, length, codes, first * bits >> 3, bits, sent, levels, nearest)
        scales[block] = _scale(energy, along)


@njit(nogil=True, cache=True)
def encode_largest(start, stop, numbers, codes, scales, keys, padded, bits, sent):
    """Of each 2**(bits - 1) which is the largest, and a bit for whether that is above zero."""
    held = np.empty(BLOCK, np.float32)
    for block in range(start, stop):
        first, length = bounds(block, padded)
        energy = _take(numbers, first, length, held)
        rotate(held, 0, length, elements(first, length), keys)
        along = pack_largest(held, length, codes, (first >> (bits - 1)) * bits >> 3, bits, sent)
        scales[block] = _scale(energy, along)


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
def _scale(energy, along):
    return np.float32(energy / along) if along > 0 else np.float32(0)


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
