"""Dense directions, and rounding, in numba: regenerated 128 counters at a time, never stored."""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import overload
from numpy.typing import NDArray

from fullfed.sketch import entries
from fullfed.sketch.philox_cpu import fill_words
from fullfed.sketch.scalars_cpu import at, bits_of, float_of, narrow, shifted, signed, widen

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
def _tail(word):
    """t = 1 - |x| of erfinv's argument."""
    return np.float32(np.uint32((word << np.uint32(1)) | np.uint32(1))) * np.float32(2.0**-32)


@njit
def _depth(word):
    """w = -log(1 - x**2)."""
    t = _tail(word)
    return -_logarithm(t * (_TWO - t))


@njit
def _normal(word, w):
    centre = _polynomial(_CENTRE, w - np.float32(2.5))
    tail = _polynomial(_TAIL, np.sqrt(w) - np.float32(3.5))
    size = (centre if w < np.float32(5) else tail) * (_ONE - _tail(word)) * _SQRT2
    return signed(size, word, np.uint32(0))


class Signs(NamedTuple):
    """One bit a number. The kinds are types, so that each has kernels of its own."""

    bits: int


class Normals(NamedTuple):
    bits: int


class Truncated(NamedTuple):
    """Truncated normals whose series has two coefficients: long blocks."""

    bits: int
    a0: np.float32
    a1: np.float32


class LongTruncated(NamedTuple):
    """Truncated normals with the whole series, for short blocks; its loop does not vectorise."""

    bits: int
    series: NDArray[np.float32]


def kind_of(kind: entries.Entries) -> Signs | Normals | Truncated | LongTruncated:
    if kind.bits == 1:
        return Signs(1)
    if kind.bits == 32:
        return Normals(32)
    series = np.array(kind.series, dtype=np.float32)
    if series.size > 2:
        return LongTruncated(16, series)
    # A leading zero coefficient changes no bit.
    return Truncated(16, series[0], series[1] if series.size == 2 else np.float32(0))


def value(kind: Any, word: Any, shift: Any) -> Any:
    """The number whose bits are the highest of word << shift."""
    raise NotImplementedError("runs compiled only")


@overload(value)
def _value(kind, word, shift):
    return {
        Signs: _sign_value,
        Normals: _normal_value,
        Truncated: _truncated_value,
        LongTruncated: _long_truncated_value,
    }[kind.instance_class]


def _sign_value(kind, word, shift):
    return signed(_ONE, word, shift)


def _normal_value(kind, word, shift):
    return float_of(word)


def _truncated_value(kind, word, shift):
    u = _uniform(word, shift)
    return (kind.a1 * (u * u) + kind.a0) * u


def _long_truncated_value(kind, word, shift):
    u = _uniform(word, shift)
    total = kind.series[kind.series.size - 1]
    for n in range(kind.series.size - 2, -1, -1):
        total = total * (u * u) + kind.series[n]
    return total * u


def draw(kind: Any, words: Any, first: Any, count: Any, keys: Any, which: Any) -> Any:
    """What ``value`` takes its bits from: words 0 to 3 of counters first, first + 1, ...

    ``words`` is uint32, shape (8, >= count); rows 4 to 7 are scratch.
    """
    raise NotImplementedError("runs compiled only")


@overload(draw)
def _draw(kind, words, first, count, keys, which):
    return _draw_normals if kind.instance_class is Normals else _draw_words


def _draw_words(kind, words, first, count, keys, which):
    fill_words(words, first, count, keys, which)


def _draw_normals(kind, words, first, count, keys, which):
    """The normals themselves. In two loops: in one, each number would wait for its logarithm."""
    fill_words(words, first, count, keys, which)
    for n in range(4):
        for i in range(count):
            words[at(n + 4), at(i)] = bits_of(_depth(words[n, at(i)]))
    for n in range(4):
        for i in range(count):
            number = _normal(words[n, at(i)], float_of(words[at(n + 4), at(i)]))
            words[n, at(i)] = bits_of(number)


@njit
def _uniform(word, shift):
    half = np.int32(shifted(word, shift) >> np.uint32(16))
    return np.float32(np.int32(2 * half - 65535)) * np.float32(2.0**-16)


@njit
def _place(row, bits):
    """Where a row's numbers are: their group of counters, output word and left shift."""
    parts = 128 // bits
    bit = row % parts * bits
    return row // parts, at(bit >> 5), np.uint32(32 - bits - (bit & 31))


@njit(nogil=True, cache=True)
def products(start, stop, piece, kind, keys, firsts, sums):
    """sums[k] += <direction k, each 32 rows of the piece in turn>, for k from start to stop - 1."""
    words, lanes = np.empty((8, 128), np.uint32), np.empty(128, np.float32)
    for chunk in range(0, piece.shape[0], 32):
        for k in range(start, stop):
            held = -1
            for i in range(128):
                lanes[i] = np.float32(0)
            for r in range(chunk, chunk + 32):
                group, word, shift = _place(firsts[k] + r, kind.bits)
                if group != held:
                    draw(kind, words, group * 128, 128, keys, k)
                    held = group
                for i in range(128):
                    lanes[i] += value(kind, words[word, i], shift) * piece[at(r), i]
            half = 64
            while half > 0:
                for i in range(half):
                    lanes[i] += lanes[at(i + half)]
                half //= 2
            sums[k] += lanes[0]


@njit(nogil=True, cache=True)
def add_combination(start, stop, flat, offset, first_chunk, kind, keys, firsts, scalars, factor):
    """flat += factor * sum of scalars[k] * direction k, k in order; chunks start .. stop - 1.

    A chunk is 32 rows of 128, counted from element 0 of the directions.
    """
    words, sums = np.empty((8, 128), np.uint32), np.empty((32, 128), np.float32)
    for chunk in range(first_chunk + start, first_chunk + stop):
        low = max(chunk * 32, offset // 128)
        high = min(chunk * 32 + 32, (offset + flat.size + 127) // 128)
        sums[:] = np.float32(0)
        for k in range(firsts.size):
            held, scalar = -1, scalars[k]
            for r in range(low, high):
                group, word, shift = _place(firsts[k] + r, kind.bits)
                if group != held:
                    draw(kind, words, group * 128, 128, keys, k)
                    held = group
                for i in range(128):
                    sums[at(r - low), i] += scalar * value(kind, words[word, i], shift)
        for r in range(low, high):
            begin = r * 128 - offset
            for i in range(max(0, -begin), min(128, flat.size - begin)):
                stored = flat[at(begin + i)]
                change = sums[at(r - low), at(i)] * factor
                flat[at(begin + i)] = narrow(widen(stored) + change, stored)


@njit(nogil=True, cache=True)
def round_rows(start, stop, target, wide, keys, offset):
    """target = wide with 16 random bits added below bfloat16's last; rows of 128 start .. stop."""
    words = np.empty((4, 128), np.uint32)
    held, first = -1, offset // 128
    for row in range(first + start, first + stop):
        group, word, shift = _place(row, 16)
        if group != held:
            fill_words(words, group * 128, 128, keys, 0)
            held = group
        low = row * 128 - offset
        for i in range(max(0, -low), min(128, wide.size - low)):
            bits = bits_of(wide[at(low + i)])
            finite = np.uint32(bits & np.uint32(0x7F800000)) != np.uint32(0x7F800000)
            half = np.uint32(np.uint32(words[word, at(i)] << shift) >> np.uint32(16))
            total = np.uint32(bits + half) if finite else bits
            target[at(low + i)] = np.uint16(np.uint32(total) >> np.uint32(16))
