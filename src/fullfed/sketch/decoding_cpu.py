"""Decoding in numba: a block is unpacked and rotated back while it is in a core's cache.

Kernels decode blocks start to stop - 1. Their arguments are

    numbers   float32, shape (n,): where they go
    codes     uint8: those of a block begin with a byte
    scales    float32, shape (blocks,)
    keys      uint64, shape (1, 4), of the signs
    bits      of a code
    sent      uint16: a code's bits as they are sent, and of those as they are sent the code
"""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.butterflies_cpu import from_bytes, transform
from fullfed.sketch.lanes_cpu import LANES, prefetch
from fullfed.sketch.rotation_cpu import bounds, elements, rotate_back, side_of
from fullfed.sketch.scalars_cpu import at, bits_of, float_of

_SIGN = np.uint32(0x80000000)
_AHEAD = 1024  # numbers between what is decoded and what memory is asked for; a line has 16


@njit(nogil=True, cache=True)
def decode_signs(start, stop, numbers, codes, scales, keys):
    """The scale, with its sign."""
    every, table = np.arange(256).astype(np.uint8), np.empty(256 * LANES, np.float32)
    for block in range(start, stop):
        first, length = bounds(block, len(numbers))
        if side_of(length) < 64:
            done = 1
            unpack_signs(first, first + length, numbers, codes, scales[block])
        else:
            done = 64
            _tabulate(table, every, scales[block])
            _unpack_by_table(first, first + length, numbers, codes, table)
        rotate_back(numbers, first, length, elements(first, length), keys, done)


@njit(nogil=True, cache=True)
def decode_levels(start, stop, numbers, codes, scales, keys, bits, sent, levels):
    """levels[code] times the scale."""
    for block in range(start, stop):
        first, length = bounds(block, len(numbers))
        unpack_levels(first, first + length, numbers, codes, bits, sent, levels, scales[block])
        rotate_back(numbers, first, length, elements(first, length), keys, 1)


@njit(nogil=True, cache=True)
def decode_largest(start, stop, numbers, codes, scales, keys, bits, sent):
    """Zeros but for one of each 2**(bits - 1), which has the scale with its sign."""
    for block in range(start, stop):
        first, length = bounds(block, len(numbers))
        unpack_largest(first, first + length, numbers, codes, bits, sent, scales[block])
        rotate_back(numbers, first, length, elements(first, length), keys, 1)


@njit
def unpack_signs(first, last, numbers, codes, level):
    """The level where a bit is 1, else its negative; numbers first to last - 1, by whole bytes."""
    negative = bits_of(level) ^ _SIGN
    for begin in range(first, last - 7, 8):
        byte = np.uint32(codes[at(begin >> 3)])
        for k in range(8):
            bit = (byte << np.uint32(24 + k)) & _SIGN
            numbers[at(begin + k)] = float_of(negative ^ bit)
    for k in range(last - (last - first) % 8, last):
        bit = (np.uint32(codes[at(k >> 3)]) << np.uint32(24 + (k & 7))) & _SIGN
        numbers[at(k)] = float_of(negative ^ bit)


@njit
def _tabulate(table, every, level):
    """Levels 1, 2 and 4 of the transform of the 8 numbers that each byte stands for."""
    unpack_signs(0, len(table), table, every, level)
    for row in range(0, len(table), LANES):
        transform(table, row, row + LANES, 1)


@njit
def _unpack_by_table(first, last, numbers, codes, table):
    """unpack_signs, and levels 1 to 32 of the transforms of each 64 numbers."""
    for place in range(first, last, 64):
        for line in range(place + _AHEAD, place + _AHEAD + 64, 16):
            prefetch(numbers, line)
        from_bytes(numbers, place, codes, place >> 3, table)


@njit
def unpack_levels(first, last, numbers, codes, bits, sent, levels, scale):
    """fl(level * scale); numbers first to last - 1."""
    for k in range(first, last):
        numbers[at(k)] = levels[at(sent[at(_read(codes, k * bits, bits))])] * scale


@njit
def unpack_largest(first, last, numbers, codes, bits, sent, level):
    """Groups of 2**(bits - 1); numbers first to last - 1 are whole groups."""
    places = bits - 1
    for k in range(first, last):
        numbers[at(k)] = np.float32(0)
    for group in range(first >> places, last >> places):
        code = _read(codes, group * bits, bits)
        place = (group << places) + np.int64(sent[at(code >> 1)])
        numbers[at(place)] = level if code & 1 else -level


@njit
def _read(codes, place, bits):
    """At most 17 bits from bit ``place`` on."""
    byte, last = place >> 3, len(codes) - 1
    word = np.int64(codes[at(byte)]) << 16
    word |= np.int64(codes[at(min(byte + 1, last))]) << 8
    word |= np.int64(codes[at(min(byte + 2, last))])
    return (word >> (24 - bits - (place & 7))) & ((1 << bits) - 1)
