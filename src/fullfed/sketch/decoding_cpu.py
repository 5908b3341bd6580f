"""Decoding in numba: a block is unpacked and rotated back while it is in a core's cache."""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.blocks import BLOCK
from fullfed.sketch.butterflies_cpu import transform
from fullfed.sketch.lanes_cpu import LANES
from fullfed.sketch.packed import LARGEST, LEVEL
from fullfed.sketch.rotation_cpu import bounds, rotate_back
from fullfed.sketch.scalars_cpu import at, bits_of, float_of
from fullfed.sketch.square_cpu import rotate_bytes_back

_SIGN = np.uint32(0x80000000)


@njit(nogil=True, cache=True)
def decode(start, stop, numbers, packed):
    """Blocks start to stop - 1 into ``numbers``, float32, shape (count,)."""
    held, tables = np.empty(BLOCK, np.float32), new_tables()
    for block in range(start, stop):
        decode_block(packed, block, held, numbers, block * BLOCK, tables)


@njit
def new_tables():
    """For signs: of the 8 numbers that each byte stands for, and room for another such."""
    signs = np.empty(256 * LANES, np.float32)
    unpack_signs(signs, len(signs), np.arange(256).astype(np.uint8), 0, np.float32(1))
    return signs, np.empty(256 * LANES, np.float32)


@njit
def decode_block(packed, block, held, target, spot, tables):
    """The block's numbers go to target[spot], ...; ``held`` has room for them, or is that place."""
    codes, scale, bits, sent = packed.codes, packed.scales[block], packed.bits, packed.sent
    signs, table = tables
    first, length = bounds(block, packed.length)
    if packed.says == LARGEST:
        place = (first >> (bits - 1)) * bits >> 3
        unpack_largest(held, length, codes, place, bits, sent, scale)
    elif packed.says == LEVEL:
        unpack_levels(held, length, codes, first * bits >> 3, bits, sent, packed.levels, scale)
    elif length == BLOCK:
        _tabulate(table, signs, scale)
        rotate_bytes_back(codes, first >> 3, table, held, first, packed.keys, target, spot)
        return
    else:
        unpack_signs(held, length, codes, first >> 3, scale)
    rotate_back(held, length, first, packed.keys, target, spot)


@njit
def _tabulate(table, signs, level):
    """Levels 1, 2 and 4 of the transform of the 8 numbers that each byte stands for."""
    for n in range(len(table)):
        table[n] = signs[n] * level
    for row in range(0, len(table), LANES):
        transform(table, row, row + LANES, 1)


@njit
def unpack_signs(held, length, codes, place, level):
    """The level where a bit is 1, else its negative; codes from codes[place] on."""
    negative = bits_of(level) ^ _SIGN
    for k in range(length):
        bit = (np.uint32(codes[at(place + (k >> 3))]) << np.uint32(24 + (k & 7))) & _SIGN
        held[at(k)] = float_of(negative ^ bit)


@njit
def unpack_levels(held, length, codes, place, bits, sent, levels, scale):
    """fl(level * scale); codes from codes[place] on."""
    for k in range(length):
        code = _read(codes, 8 * place + k * bits, bits)
        held[at(k)] = levels[at(sent[at(code)])] * scale


@njit
def unpack_largest(held, length, codes, place, bits, sent, level):
    """Groups of 2**(bits - 1), of which ``length`` is a multiple; codes from codes[place] on."""
    places = bits - 1
    for k in range(length):
        held[at(k)] = np.float32(0)
    for group in range(length >> places):
        code = _read(codes, 8 * place + group * bits, bits)
        largest = (group << places) + np.int64(sent[at(code >> 1)])
        held[at(largest)] = level if code & 1 else -level


@njit
def _read(codes, place, bits):
    """At most 17 bits from bit ``place`` on."""
    byte, last = place >> 3, len(codes) - 1
    word = np.int64(codes[at(byte)]) << 16
    word |= np.int64(codes[at(min(byte + 1, last))]) << 8
    word |= np.int64(codes[at(min(byte + 2, last))])
    return (word >> (24 - bits - (place & 7))) & ((1 << bits) - 1)
