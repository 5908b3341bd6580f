"""numba kernels for dense random directions, made as they are used, and stochastic rounding."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from fullfed.sketch import entries
from fullfed.sketch.cpu_numbers import (
    at,
    bits_of,
    compiled,
    fill_words,
    float_of,
    kernel,
    narrow,
    shifted,
    signed,
    widen,
)
from fullfed.sketch.cpu_tables import Scaling, row_of, times

_LOGARITHM = tuple(np.float32(value) for value in entries.LOGARITHM)
_COSINE = tuple(np.float32(value) for value in entries.COSINE)
_SINE = tuple(np.float32(value) for value in entries.SINE)
_OCTAVES, _TOP = np.float32(entries.OCTAVES), np.int32(entries.TOP)
_ONE, _TWO, _THREE = np.float32(1), np.float32(2), np.float32(3)
_MANTISSA = np.uint32(0x7FFFFF)


class Signs(NamedTuple):
    """+1 and -1. Kinds are types, so that each has compiled kernels of its own.

    Attributes:
        bits: of a number, in what ``draw`` leaves.
        parts: rows served by one output.
    """

    bits: int
    parts: int


class Normals(NamedTuple):
    """Normals, float32."""

    bits: int
    parts: int


class Truncated(NamedTuple):
    """Truncated normals; ``series`` are the coefficients of entries.inverse_cdf, and zeros."""

    bits: int
    parts: int
    series: tuple[np.float32, ...]


Kind = Signs | Normals | Truncated


class Directions(NamedTuple):
    """Directions k = 0, 1, ... of one kind.

    Attributes:
        kind: what their numbers are.
        keys: uint64, shape (K, 4), of their streams, as fill_words takes them.
        firsts: int64, shape (K,): the row of its stream that each begins with.
    """

    kind: Kind
    keys: NDArray[np.uint64]
    firsts: NDArray[np.int64]


def kind_of(made: entries.Entries) -> Kind:
    """The entries as kernels take them."""
    if made.bits == 1:
        return Signs(1, made.parts)
    if not made.series:
        return Normals(32, made.parts)
    # There is a kernel for each length. Zeros as highest coefficients change no bit.
    length = next(length for length in (2, 4, 19) if length >= len(made.series))
    series = [np.float32(coefficient) for coefficient in made.series]
    return Truncated(16, made.parts, (*series, *[np.float32(0)] * (length - len(series))))


@compiled
def _polynomial(coefficients: tuple[np.float32, ...], x: np.float32) -> np.float32:
    """Horner's rule; coefficients lowest power first."""
    total = coefficients[-1]
    for i in range(len(coefficients) - 2, -1, -1):
        total = total * x + coefficients[i]
    return total


@compiled
def _logarithm(g: np.float32) -> np.float32:
    """entries.logarithm."""
    low = _LOGARITHM[1] * g + _LOGARITHM[0]
    middle = _LOGARITHM[3] * g + _LOGARITHM[2]
    high = _LOGARITHM[5] * g + _LOGARITHM[4]
    square = g * g
    return (_LOGARITHM[6] * square + high) * (square * square) + (middle * square + low)


@compiled
def _radius(word: np.uint32) -> np.float32:
    """entries.radius."""
    bits = bits_of(np.float32(np.int32(np.uint32(word >> np.uint32(15)) | np.uint32(1))))
    octaves = np.float32(np.int32(_TOP - np.int32(bits)))
    g = _TWO - float_of((bits & _MANTISSA) | np.uint32(0x3F800000))
    root: np.float32 = np.sqrt(octaves * _OCTAVES + g * _logarithm(g))
    return root


@compiled
def _angle(word: np.uint32) -> np.float32:
    """u of entries.normals, made from 3 + u: bit 1 of the word is worth 2**8 in the mantissa."""
    mantissa = np.uint32(np.uint32(word << np.uint32(7)) & np.uint32(0x7FFF00))
    return float_of(mantissa | np.uint32(0x40000080)) - _THREE


@compiled
def _uniform(word: np.uint32, shift: np.uint32) -> np.float32:
    """u of entries.truncated_normals, from the highest 16 bits of word << shift."""
    half = np.int32(shifted(word, shift) >> np.uint32(16))
    return np.float32(np.int32(2 * half - 65535)) * np.float32(2.0**-16)


def value(kind: Any, word: Any, shift: Any) -> Any:
    """The number, float32, whose bits are the highest of word << shift."""
    raise NotImplementedError("runs compiled only")


@overload(value, strict=False)
def _value(kind: Any, word: Any, shift: Any) -> Any:
    return {Signs: _sign, Normals: _normal, Truncated: _truncated}[kind.instance_class]


def _sign(kind: Signs, word: np.uint32, shift: np.uint32) -> np.float32:
    return signed(_ONE, word, shift)


def _normal(kind: Normals, word: np.uint32, shift: np.uint32) -> np.float32:
    return float_of(word)


def _truncated(kind: Truncated, word: np.uint32, shift: np.uint32) -> np.float32:
    u = _uniform(word, shift)
    return _polynomial(kind.series, u * u) * u


def draw(kind: Any, drawn: Any, words: Any, first: Any, key: Any) -> Any:
    """What ``value`` takes its bits from, of outputs first, ..., first + 127.

    Args:
        drawn: uint32, shape (8, 128), to be written.
        words: uint32, shape (4, 128), is overwritten.
        key: uint64, shape (4,), as fill_words takes it.
    """
    raise NotImplementedError("runs compiled only")


@overload(draw, strict=False)
def _draw(kind: Any, drawn: Any, words: Any, first: Any, key: Any) -> Any:
    return _draw_normals if kind.instance_class is Normals else _draw_words


def _draw_words(
    kind: Kind,
    drawn: NDArray[np.uint32],
    words: NDArray[np.uint32],
    first: int,
    key: NDArray[np.uint64],
) -> None:
    fill_words(drawn, first, 128, key)


def _draw_normals(
    kind: Kind,
    drawn: NDArray[np.uint32],
    words: NDArray[np.uint32],
    first: int,
    key: NDArray[np.uint64],
) -> None:
    """The normals themselves, of row n in drawn[n]."""
    fill_words(words, first, 128, key)
    for n in range(4):
        for i in range(128):
            word = words[n, i]
            r, u = signed(_radius(word), word, np.uint32(31)), _angle(word)
            drawn[2 * n, i] = bits_of(r * _polynomial(_COSINE, u * u))
            drawn[2 * n + 1, i] = bits_of(r * (u * _polynomial(_SINE, u * u)))


@compiled
def _place(row: int, parts: int, bits: int) -> tuple[int, np.uint64, np.uint32]:
    """Where a row's numbers are: their group of 128 outputs, row of ``drawn`` and left shift."""
    bit = row % parts * bits
    return row // parts, at(bit >> 5), np.uint32(32 - bits - (bit & 31))


@kernel
def products(
    start: int,
    stop: int,
    elements: NDArray[np.float32],
    directions: Directions,
    sums: NDArray[np.float32],
) -> None:
    """sums[k] += <direction k, 32 rows of elements>, for each 32 in turn.

    Args:
        start, stop: of directions k = start, ..., stop - 1.
        elements: float32, shape (rows, 128), rows a multiple of 32.
        sums: float32, shape (K,).
    """
    kind, keys, firsts = directions
    drawn, words = np.empty((8, 128), np.uint32), np.empty((4, 128), np.uint32)
    lanes = np.empty(128, np.float32)
    for chunk in range(0, elements.shape[0], 32):
        for k in range(start, stop):
            held = -1
            lanes[:] = np.float32(0)
            for r in range(chunk, chunk + 32):
                group, word, shift = _place(firsts[k] + r, kind.parts, kind.bits)
                if group != held:
                    draw(kind, drawn, words, group * 128, keys[k])
                    held = group
                for i in range(128):
                    lanes[i] += value(kind, drawn[word, i], shift) * elements[at(r), i]
            half = 64
            while half > 0:
                for i in range(half):
                    lanes[i] += lanes[at(i + half)]
                half //= 2
            sums[k] += lanes[0]


@kernel
def add_combination(
    start: int,
    stop: int,
    flat: NDArray[Any],
    offset: int,
    first_chunk: int,
    directions: Directions,
    scalars: NDArray[np.float32],
    factor: np.float32,
    scaling: Scaling | None,
) -> None:
    """flat += fl(u * factor), u = the sum of fl(scalars[k] * direction k), k in order from zero.

    Args:
        start, stop: of chunks first_chunk + start, ..., first_chunk + stop - 1; a chunk is 32 rows
            of 128, counted from element 0 of the directions.
        flat: the elements ``offset``, offset + 1, ..., float32 or 16-bit as integers.
        scalars: float32, shape (K,).
        scaling: what is added to each element is multiplied by its own factor last.
    """
    kind, keys, firsts = directions
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
                    draw(kind, drawn, words, group * 128, keys[k])
                    held = group
                for i in range(128):
                    sums[at(r - low), i] += scalar * value(kind, drawn[word, i], shift)
        for r in range(low, high):
            begin = r * 128 - offset
            i, last = max(0, -begin), min(128, flat.size - begin)
            while i < last:
                cut, power, column = row_of(scaling, 0, begin + i, i, last)
                _add_row(flat, begin, sums[r - low], factor, scaling, power, column, i, cut)
                i = cut


@compiled
def _add_row(
    flat: NDArray[Any],
    begin: int,
    sums: NDArray[np.float32],
    factor: np.float32,
    scaling: Scaling | None,
    power: np.float32,
    column: int,
    first: int,
    last: int,
) -> None:
    """flat[begin + i] += fl(sums[i] * factor), i = first, ..., last - 1, which are in one row."""
    for i in range(first, last):
        stored = flat[at(begin + i)]
        change = times(sums[at(i)] * factor, scaling, power, at(column + i))
        flat[at(begin + i)] = narrow(widen(stored) + change, stored)


@kernel
def round_rows(
    start: int,
    stop: int,
    target: NDArray[np.uint16],
    wide: NDArray[np.float32],
    key: NDArray[np.uint64],
    offset: int,
) -> None:
    """target = wide with 16 random bits added below bfloat16's last.

    Args:
        start, stop: of rows offset div 128 + start, ..., of 128 elements.
        target, wide: the elements ``offset``, offset + 1, ...; bfloat16 as uint16, and float32.
        key: uint64, shape (4,), as fill_words takes it.
    """
    words = np.empty((4, 128), np.uint32)
    held, first = -1, offset // 128
    for row in range(first + start, first + stop):
        group, word, shift = _place(row, 8, 16)
        if group != held:
            fill_words(words, group * 128, 128, key)
            held = group
        low = row * 128 - offset
        for i in range(max(0, -low), min(128, wide.size - low)):
            bits = bits_of(wide[at(low + i)])
            finite = np.uint32(bits & np.uint32(0x7F800000)) != np.uint32(0x7F800000)
            half = np.uint32(np.uint32(words[word, at(i)] << shift) >> np.uint32(16))
            total = np.uint32(bits + half) if finite else bits
            target[at(low + i)] = np.uint16(np.uint32(total) >> np.uint32(16))


@kernel
def dither_rows(
    start: int,
    stop: int,
    wide: NDArray[np.float32],
    key: NDArray[np.uint64],
    offset: int,
    dropped: int,
) -> None:
    """wide = another float32 that rounds to the same 16-bit number.

    Args:
        start, stop, key, offset: as for ``round_rows``.
        wide: the elements ``offset``, offset + 1, ..., each exactly a 16-bit number.
        dropped: how many of a float32's bits that number has not.
    """
    words = np.empty((4, 128), np.uint32)
    held, first = -1, offset // 128
    for row in range(first + start, first + stop):
        group, word, shift = _place(row, 8, 16)
        if group != held:
            fill_words(words, group * 128, 128, key)
            held = group
        low = row * 128 - offset
        for i in range(max(0, -low), min(128, wide.size - low)):
            bits = bits_of(wide[at(low + i)])
            size = np.uint32(bits & np.uint32(0x7FFFFFFF))
            if size == 0 or size >= np.uint32(0x7F800000):
                continue
            half = np.uint32(np.uint32(words[word, at(i)] << shift) >> np.uint32(16))
            drawn = max(np.uint32(half >> np.uint32(16 - dropped)), np.uint32(1))
            moved = np.uint32(bits + drawn - np.uint32(1 << (dropped - 1)))
            wide[at(low + i)] = float_of(moved)
