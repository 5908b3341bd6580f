"""Rotations and codes of coordinates in numba."""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.philox_cpu import fill_words
from fullfed.sketch.scalars_cpu import at, bits_of, signed

_ABSOLUTE = np.uint32(0x7FFFFFFF)
COLUMNS = 128  # that are transformed together: what is held of them fits a core's cache


@njit(nogil=True, cache=True)
def flip(start, stop, vector, offset, first_group, keys):
    """Signs onto elements; item is a group of 128 rows of 128, counted from ``offset``."""
    words = np.empty((4, 128), np.uint32)
    for group in range(first_group + start, first_group + stop):
        fill_words(words, group * 128, 128, keys, 0)
        for r in range(128):
            place = (group * 128 + r) * 128 - offset
            shift = np.uint32(31 - (r & 31))
            for c in range(max(0, -place), min(128, len(vector) - place)):
                i = at(place + c)
                vector[i] = signed(vector[i], words[r >> 5, at(c)], shift)


@njit
def _butterflies(values, half):
    """v_i, v_(i + half) become their sum and their difference, for i without bit ``half``."""
    for first in range(0, len(values), 2 * half):
        lows, highs = values[first : first + half], values[first + half : first + 2 * half]
        for i in range(half):
            low, high = lows[i], highs[i]
            lows[i] = low + high
            highs[i] = low - high


@njit
def _two_butterflies(values, half):
    """``_butterflies`` with half and then 2 half, in one pass."""
    for first in range(0, len(values), 4 * half):
        w, x = values[first : first + half], values[first + half : first + 2 * half]
        y, z = (
            values[first + 2 * half : first + 3 * half],
            values[first + 3 * half : first + 4 * half],
        )
        for i in range(half):
            a, b, c, d = w[i] + x[i], w[i] - x[i], y[i] + z[i], y[i] - z[i]
            w[i], x[i], y[i], z[i] = a + c, b + d, a - c, b - d


@njit
def _first_butterflies(values):
    """``_butterflies`` with halves 1, 2 and 4, in registers; a multiple of 8 values."""
    for i in range(0, len(values), 8):
        a, b, c, d = values[i], values[i + 1], values[i + 2], values[i + 3]
        e, f, g, h = values[i + 4], values[i + 5], values[i + 6], values[i + 7]
        a, b, c, d, e, f, g, h = a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h
        a, b, c, d, e, f, g, h = a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h
        values[i], values[i + 1], values[i + 2], values[i + 3] = a + e, b + f, c + g, d + h
        values[i + 4], values[i + 5], values[i + 6], values[i + 7] = a - e, b - f, c - g, d - h


@njit(nogil=True, cache=True)
def transform_neighbours(start, stop, blocks, scale):
    """The transform of each row of ``blocks`` (m, C), in place; of rows start to stop - 1."""
    for b in range(start, stop):
        row = blocks[b]
        half = 1
        if len(row) >= 8:
            _first_butterflies(row)
            half = 8
        while 2 * half < len(row):
            _two_butterflies(row, half)
            half *= 4
        if half < len(row):
            _butterflies(row, half)
        for i in range(len(row)):
            row[i] *= scale


@njit(nogil=True, cache=True)
def transform_distant(start, stop, blocks, scale):
    """The transform of each column of ``blocks`` (C, m), in place, 128 columns at a time."""
    size, count = blocks.shape
    held = np.empty((size, COLUMNS), np.float32)
    for group in range(start, stop):
        begin = group * COLUMNS
        width = min(COLUMNS, count - begin)
        for r in range(size):
            for c in range(width):
                held[r, c] = blocks[r, begin + c]
        half = 1
        while 2 * half < size:
            for first in range(0, size, 4 * half):
                for r in range(first, first + half):
                    w, x, y, z = held[r], held[r + half], held[r + 2 * half], held[r + 3 * half]
                    for i in range(width):
                        a, b, c, d = w[i] + x[i], w[i] - x[i], y[i] + z[i], y[i] - z[i]
                        w[i], x[i], y[i], z[i] = a + c, b + d, a - c, b - d
            half *= 4
        if half < size:
            for r in range(half):
                w, x = held[r], held[r + half]
                for i in range(width):
                    w[i], x[i] = w[i] + x[i], w[i] - x[i]
        for r in range(size):
            for c in range(width):
                blocks[r, begin + c] = held[r, c] * scale


@njit
def _put(codes, first, bits, code):
    """Bit j of the code becomes bit first + j of zeroed ``codes``, each byte's highest first."""
    for j in range(bits):
        place = first + j
        codes[place >> 3] |= ((code >> j) & 1) << (7 - (place & 7))


@njit
def _get(codes, first, bits):
    """The code that ``_put`` put there."""
    code = 0
    for j in range(bits):
        place = first + j
        code |= ((codes[place >> 3] >> (7 - (place & 7))) & 1) << j
    return code


@njit(nogil=True, cache=True)
def pack(numbers, bounds, levels, bits, codes):
    """The nearest level of each number, into zeroed ``codes``; returns <numbers, levels>."""
    along = 0.0
    for k in range(len(numbers)):
        code = 0
        for bound in bounds:
            code += numbers[k] > bound
        along += np.float64(numbers[k]) * np.float64(levels[code])
        _put(codes, k * bits, bits, code)
    return along


@njit(nogil=True, cache=True)
def unpack(codes, bits, levels, numbers):
    """The level of each code, into ``numbers``."""
    for k in range(len(numbers)):
        numbers[k] = levels[_get(codes, k * bits, bits)]


@njit(nogil=True, cache=True)
def pack_signs(numbers, codes):
    """``pack_largest`` with groups of one, faster; returns the sum of absolute values."""
    along = 0.0
    for byte in range(len(codes)):
        bits, length = 0, np.float32(0)
        for k in range(8 * byte, min(8 * byte + 8, len(numbers))):
            positive = numbers[k] > 0
            bits |= positive << (7 - (k & 7))
            length += numbers[k] if positive else -numbers[k]
        codes[byte] = bits
        along += float(length)
    return along


@njit(nogil=True, cache=True)
def pack_largest(groups, bits, codes):
    """Of each row the place of its largest and whether it is above zero, into zeroed ``codes``.

    The place's bits come first, lowest first; returns the sum of the largest absolute values.
    """
    along = 0.0
    for g in range(len(groups)):
        row, most = groups[g], np.uint32(0)
        for k in range(len(row)):  # absolute values have the order of their bits, which vectorise
            most = max(most, bits_of(row[k]) & _ABSOLUTE)
        place = 0
        while bits_of(row[place]) & _ABSOLUTE != most:
            place += 1
        along += abs(np.float64(row[place]))
        _put(codes, g * bits, bits, place | ((row[place] > 0) << (bits - 1)))
    return along


@njit(nogil=True, cache=True)
def unpack_largest(codes, bits, scale, groups):
    """The scale, with its sign, into each row's place; rows are zero."""
    for g in range(len(groups)):
        code = _get(codes, g * bits, bits)
        positive = code >> (bits - 1)
        groups[g, code & (groups.shape[1] - 1)] = scale if positive else -scale
