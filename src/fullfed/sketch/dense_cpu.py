"""Dense directions in numba: regenerated 128 counters at a time, never stored."""

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch import entries
from fullfed.sketch.philox_cpu import fill_words
from fullfed.sketch.scalars_cpu import at, bits_of, float_of, signed

_LOGARITHM = tuple(np.float32(value) for value in entries.LOGARITHM)
_CENTRE = tuple(np.float32(value) for value in entries.CENTRE)
_TAIL = tuple(np.float32(value) for value in entries.TAIL)
_LN2, _SQRT2 = np.float32(entries.LN2), np.float32(entries.SQRT2)
_OCTAVE = np.int32(entries.HALF_OCTAVE)
_ONE, _TWO, _HALF = np.float32(1), np.float32(2), np.float32(0.5)


@njit
def _polynomial(coefficients, x):
    total = coefficients[0]
    for i in range(1, len(coefficients)):
        total = total * x + coefficients[i]
    return total


@njit
def _logarithm(p):
    bits = np.int32(bits_of(p))
    e = np.int32(np.int32(bits - _OCTAVE) >> np.int32(23))
    f = float_of(np.int32(bits - np.int32(e << np.int32(23)))) - _ONE
    square = f * f
    rest = _polynomial(_LOGARITHM, f) * (f * square) - _HALF * square
    return (f + rest) + np.float32(e) * _LN2


@njit
def _normal(word):
    t = np.float32(np.uint32((word << np.uint32(1)) | np.uint32(1))) * np.float32(2.0**-32)
    w = -_logarithm(t * (_TWO - t))
    centre = _polynomial(_CENTRE, w - np.float32(2.5))
    tail = _polynomial(_TAIL, np.sqrt(w) - np.float32(3))
    size = (centre if w < np.float32(5) else tail) * (_ONE - t) * _SQRT2
    return signed(size, word, np.uint32(0))


@njit
def _uniform(word, shift):
    """From the 16 bits left at the top of word << shift: (2 h - 65535) / 65536."""
    half = np.int32(np.uint32(word << shift) >> np.uint32(16))
    return np.float32(np.int32(2 * half - 65535)) * np.float32(2.0**-16)


@njit
def _fill_truncated(row, words, part, series):
    word, shift = at(part >> 1), np.uint32(16 - 16 * (part & 1))
    if series.size == 2:  # long blocks; without an inner loop this one vectorises
        a0, a1 = series[0], series[1]
        for i in range(128):
            u = _uniform(words[word, i], shift)
            row[i] = (a1 * (u * u) + a0) * u
        return
    for i in range(128):
        u = _uniform(words[word, i], shift)
        total = series[series.size - 1]
        for n in range(series.size - 2, -1, -1):
            total = total * (u * u) + series[n]
        row[i] = total * u


@njit
def _fill_row(row, words, part, bits, series):
    """row[i] = the number in this part of counter i's words."""
    if bits == 1:
        word, shift = at(part >> 5), np.uint32(31 - (part & 31))
        for i in range(128):
            row[i] = signed(_ONE, words[word, i], shift)
    elif bits == 16:
        _fill_truncated(row, words, part, series)
    else:
        for i in range(128):
            row[i] = _normal(words[at(part), i])


@njit(nogil=True, cache=True)
def products(start, stop, piece, keys, firsts, bits, series, sums):
    """sums[k] += <direction k, each 32 rows of the piece in turn>, for k from start to stop - 1."""
    words, row = np.empty((4, 128), np.uint32), np.empty(128, np.float32)
    lanes = np.empty(128, np.float32)
    parts = 128 // bits
    for chunk in range(0, piece.shape[0], 32):
        for k in range(start, stop):
            for i in range(128):
                lanes[i] = np.float32(0)
            for r in range(chunk, chunk + 32):
                place = firsts[k] + r
                if r == chunk or place % parts == 0:
                    fill_words(words, (place // parts) * 128, 128, keys, k)
                _fill_row(row, words, place % parts, bits, series)
                for i in range(128):
                    lanes[i] += row[i] * piece[at(r), i]
            half = 64
            while half > 0:
                for i in range(half):
                    lanes[i] += lanes[at(i + half)]
                half //= 2
            sums[k] += lanes[0]


@njit(nogil=True, cache=True)
def combine(start, stop, piece, keys, firsts, bits, series, scalars):
    """piece = sum of scalars[k] * direction k, k in order; 32-row chunks start .. stop - 1."""
    words, row = np.empty((4, 128), np.uint32), np.empty(128, np.float32)
    parts = 128 // bits
    for chunk in range(start * 32, stop * 32, 32):
        last = min(chunk + 32, piece.shape[0])
        piece[chunk:last] = np.float32(0)
        for k in range(firsts.size):
            scalar = scalars[k]
            for r in range(chunk, last):
                place = firsts[k] + r
                if r == chunk or place % parts == 0:
                    fill_words(words, (place // parts) * 128, 128, keys, k)
                _fill_row(row, words, place % parts, bits, series)
                for i in range(128):
                    piece[at(r), i] += scalar * row[i]
