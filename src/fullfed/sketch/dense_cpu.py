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
_COSINE = tuple(np.float32(value) for value in entries.COSINE)
_SINE = tuple(np.float32(value) for value in entries.SINE)
_OCTAVES, _TOP = np.float32(entries.OCTAVES), np.int32(entries.TOP)
_ONE, _TWO, _THREE = np.float32(1), np.float32(2), np.float32(3)
_MANTISSA = np.uint32(0x7FFFFF)


@njit
def _polynomial(coefficients, x):
    total = coefficients[-1]
    for i in range(len(coefficients) - 2, -1, -1):
        total = total * x + coefficients[i]
    return total


@njit
def _logarithm(g):
    low = _LOGARITHM[1] * g + _LOGARITHM[0]
    middle = _LOGARITHM[3] * g + _LOGARITHM[2]
    high = _LOGARITHM[5] * g + _LOGARITHM[4]
    square = g * g
    return (_LOGARITHM[6] * square + high) * (square * square) + (middle * square + low)


@njit
def _radius(word):
    bits = bits_of(np.float32(np.int32(np.uint32(word >> np.uint32(15)) | np.uint32(1))))
    octaves = np.float32(np.int32(_TOP - np.int32(bits)))
    g = _TWO - float_of((bits & _MANTISSA) | np.uint32(0x3F800000))
    return np.sqrt(octaves * _OCTAVES + g * _logarithm(g))


@njit
def _angle(word):
    """u, made from 3 + u: bit 1 of the word is worth 2**8 in the mantissa, the middle 2**7."""
    mantissa = np.uint32(np.uint32(word << np.uint32(7)) & np.uint32(0x7FFF00))
    return float_of(mantissa | np.uint32(0x40000080)) - _THREE


class Signs(NamedTuple):
    """The kinds are types, so that each has kernels of its own.

    Attributes:
        bits: of a number, in what ``draw`` leaves.
        parts: rows served by one counter.
    """

    bits: int
    parts: int


class Normals(NamedTuple):
    bits: int
    parts: int


class Truncated(NamedTuple):
    """Truncated normals whose series has two coefficients: long blocks."""

    bits: int
    parts: int
    a0: np.float32
    a1: np.float32


class LongTruncated(NamedTuple):
    """Truncated normals with the whole series, for short blocks; its loop does not vectorise."""

    bits: int
    parts: int
    series: NDArray[np.float32]


def kind_of(kind: entries.Entries) -> Signs | Normals | Truncated | LongTruncated:
    if kind.bits == 1:
        return Signs(1, kind.parts)
    if not kind.series:
        return Normals(32, kind.parts)
    series = np.array(kind.series, dtype=np.float32)
    if series.size > 2:
        return LongTruncated(16, kind.parts, series)
    # A leading zero coefficient changes no bit.
    a1 = series[1] if series.size == 2 else np.float32(0)
    return Truncated(16, kind.parts, series[0], a1)


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


def draw(kind: Any, drawn: Any, words: Any, first: Any, count: Any, keys: Any, which: Any) -> Any:
    """What ``value`` takes its bits from, of counters first, first + 1, ...

    ``drawn`` is uint32, shape (8, >= count); ``words`` (4, >= count) is scratch.
    """
    raise NotImplementedError("runs compiled only")


@overload(draw)
def _draw(kind, drawn, words, first, count, keys, which):
    return _draw_normals if kind.instance_class is Normals else _draw_words


def _draw_words(kind, drawn, words, first, count, keys, which):
    fill_words(drawn, first, count, keys, which)


def _draw_normals(kind, drawn, words, first, count, keys, which):
    """The normals themselves, in rows."""
    fill_words(words, first, count, keys, which)
    for n in range(4):
        for i in range(count):
            word = words[at(n), at(i)]
            r, u = signed(_radius(word), word, np.uint32(31)), _angle(word)
            drawn[at(2 * n), at(i)] = bits_of(r * _polynomial(_COSINE, u * u))
            drawn[at(2 * n + 1), at(i)] = bits_of(r * (u * _polynomial(_SINE, u * u)))


@njit
def _uniform(word, shift):
    half = np.int32(shifted(word, shift) >> np.uint32(16))
    return np.float32(np.int32(2 * half - 65535)) * np.float32(2.0**-16)


@njit
def _place(row, parts, bits):
    """Where a row's numbers are: their group of counters, drawn word and left shift."""
    bit = row % parts * bits
    return row // parts, at(bit >> 5), np.uint32(32 - bits - (bit & 31))


@njit(nogil=True, cache=True)
def products(start, stop, piece, kind, keys, firsts, sums):
    """sums[k] += <direction k, each 32 rows of the piece in turn>, for k from start to stop - 1."""
    drawn, words = np.empty((8, 128), np.uint32), np.empty((4, 128), np.uint32)
    lanes = np.empty(128, np.float32)
    for chunk in range(0, piece.shape[0], 32):
        for k in range(start, stop):
            held = -1
            for i in range(128):
                lanes[i] = np.float32(0)
            for r in range(chunk, chunk + 32):
                group, word, shift = _place(firsts[k] + r, kind.parts, kind.bits)
                if group != held:
                    draw(kind, drawn, words, group * 128, 128, keys, k)
                    held = group
                for i in range(128):
                    lanes[i] += value(kind, drawn[word, i], shift) * piece[at(r), i]
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
    drawn, words = np.empty((8, 128), np.uint32), np.empty((4, 128), np.uint32)
    sums = np.empty((32, 128), np.float32)
    for chunk in range(first_chunk + start, first_chunk + stop):
        low = max(chunk * 32, offset // 128)
        high = min(chunk * 32 + 32, (offset + flat.size + 127) // 128)
        sums[:] = np.float32(0)
        for k in range(firsts.size):
            held, scalar = -1, scalars[k]
            for r in range(low, high):
                group, word, shift = _place(firsts[k] + r, kind.parts, kind.bits)
                if group != held:
                    draw(kind, drawn, words, group * 128, 128, keys, k)
                    held = group
                for i in range(128):
                    sums[at(r - low), i] += scalar * value(kind, drawn[word, i], shift)
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
        group, word, shift = _place(row, 8, 16)
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
