"""Decoding in numba: what codes stand for and the first of the rotation's passes, in one.

A SLAB of numbers is unpacked, and its neighbours transformed while it is in a core's cache. The
last arguments of a kernel are those of rotate_neighbours after the vector.
"""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.rotation_cpu import rotate_neighbours
from fullfed.sketch.scalars_cpu import at, bits_of, float_of

SLAB = 65536  # numbers; codes of a slab take whole bytes, and its signs whole counters
_SIGN = np.uint32(0x80000000)


@njit(nogil=True, cache=True)
def decode_signs(start, stop, numbers, codes, level, size, scale, before, after, keys):
    """The level, with its sign."""
    for slab in range(start, stop):
        first, last = slab * SLAB, min(slab * SLAB + SLAB, len(numbers))
        unpack_signs(first, last, numbers, codes, level)
        rotate_neighbours(first // size, last // size, numbers, size, scale, before, after, keys)


@njit(nogil=True, cache=True)
def decode_levels(start, stop, numbers, codes, bits, levels, size, scale, before, after, keys):
    """levels[code] of each code."""
    for slab in range(start, stop):
        first, last = slab * SLAB, min(slab * SLAB + SLAB, len(numbers))
        unpack_levels(first, last, numbers, codes, bits, levels)
        rotate_neighbours(first // size, last // size, numbers, size, scale, before, after, keys)


@njit(nogil=True, cache=True)
def decode_largest(
    start, stop, numbers, codes, bits, read, level, size, scale, before, after, keys
):
    """Zeros but for place read[code] of each 2**bits, which has the level with its sign."""
    for slab in range(start, stop):
        first, last = slab * SLAB, min(slab * SLAB + SLAB, len(numbers))
        unpack_largest(first, last, numbers, codes, bits, read, level)
        rotate_neighbours(first // size, last // size, numbers, size, scale, before, after, keys)


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
def unpack_levels(first, last, numbers, codes, bits, levels):
    """levels[code]; numbers first to last - 1."""
    for k in range(first, last):
        numbers[at(k)] = levels[at(_read(codes, k * bits, bits))]


@njit
def unpack_largest(first, last, numbers, codes, bits, read, level):
    """Groups of 2**bits, codes of one more; numbers first to last - 1 are whole groups."""
    for k in range(first, last):
        numbers[at(k)] = np.float32(0)
    for group in range(first >> bits, last >> bits):
        code = _read(codes, group * (bits + 1), bits + 1)
        place = (group << bits) + np.int64(read[at(code >> 1)])
        numbers[at(place)] = level if code & 1 else -level


@njit
def _read(codes, place, bits):
    """At most 17 bits from bit ``place`` on."""
    byte, last = place >> 3, len(codes) - 1
    word = np.int64(codes[at(byte)]) << 16
    word |= np.int64(codes[at(min(byte + 1, last))]) << 8
    word |= np.int64(codes[at(min(byte + 2, last))])
    return (word >> (24 - bits - (place & 7))) & ((1 << bits) - 1)
