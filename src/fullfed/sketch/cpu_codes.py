"""Coding in numba: a block of numbers is rotated and packed, or unpacked and rotated back.

The rotation is x <- H D'' H' D' H D x (docs/shared-randomness.md, section 9), D diagonal matrices
of random signs, H and H' Walsh-Hadamard transforms: H of C neighbours at a time, H' of C numbers at
equal distances over the whole block. A block stays in its core's cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fullfed.sketch.backends import CODED_BLOCK, side
from fullfed.sketch.cpu_numbers import at, bits_of, compiled, fill_words, inlined, kernel, signed

_ABSOLUTE, _SIGN = np.uint32(0x7FFFFFFF), np.uint32(0x80000000)
_side = compiled(side)


class CodedBlocks(NamedTuple):
    """A backends.Message as kernels take it.

    Attributes:
        codes: uint8; those of a block begin with a byte, each byte's highest bit first.
        scales: float32, shape (blocks,).
        padded: how many numbers all blocks have.
        key: uint64, shape (4,), of the rotations' signs.
        bits: of a code, lowest first.
        group: numbers that a code stands for.
        levels: float32; empty if a code says which of a group is not 0.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    padded: int
    key: NDArray[np.uint64]
    bits: int
    group: int
    levels: NDArray[np.float32]


@compiled
def transform_neighbours(x: NDArray[np.float32], length: int) -> None:
    """Walsh-Hadamard transforms of C neighbours each of x_0, ..., x_(length - 1), unscaled."""
    if length == CODED_BLOCK:
        three_levels(x, 1)
        three_levels(x, 8)
        two_levels(x, 64)
    else:
        levels(x, length, 1, _side(length))


@compiled
def transform_distant(x: NDArray[np.float32], length: int) -> None:
    """Walsh-Hadamard transforms of the C numbers that are length / C apart each, unscaled."""
    if length == CODED_BLOCK:
        three_levels(x, 256)
        three_levels(x, 2048)
        two_levels(x, 16384)
    else:
        levels(x, length, length // _side(length), length)


@compiled
def levels(x: NDArray[np.float32], length: int, half: int, size: int) -> None:
    """Levels half, 2 half, ..., size / 2 of transforms of x_0, ..., x_(length - 1).

    Level h makes of each x_i and x_(i + h), i / h rounded down even, their sum and difference.
    """
    while half < size:
        for begin in range(0, length, 2 * half):
            for i in range(begin, begin + half):
                x[i], x[i + half] = x[i] + x[i + half], x[i] - x[i + half]
        half *= 2


# Several levels in one pass over a whole block. Each sum is rounded by itself, so the bits are
# those of ``levels``. They are inlined because LLVM vectorises them only if ``half`` is a constant.


@inlined
def two_levels(x: NDArray[np.float32], half: int) -> None:
    """Levels half and 2 half of a block."""
    for begin in range(0, CODED_BLOCK, 4 * half):
        for i in range(begin, begin + half):
            i0, i1, i2, i3 = at(i), at(i + half), at(i + 2 * half), at(i + 3 * half)
            a, b, c, d = x[i0] + x[i1], x[i0] - x[i1], x[i2] + x[i3], x[i2] - x[i3]
            x[i0], x[i1], x[i2], x[i3] = a + c, b + d, a - c, b - d


@inlined
def three_levels(x: NDArray[np.float32], half: int) -> None:
    """Levels half, 2 half and 4 half of a block."""
    for begin in range(0, CODED_BLOCK, 8 * half):
        for i in range(begin, begin + half):
            i0, i1, i2, i3 = at(i), at(i + half), at(i + 2 * half), at(i + 3 * half)
            i4, i5, i6, i7 = at(i + 4 * half), at(i + 5 * half), at(i + 6 * half), at(i + 7 * half)
            a, b, c, d = x[i0] + x[i1], x[i0] - x[i1], x[i2] + x[i3], x[i2] - x[i3]
            e, f, g, h = x[i4] + x[i5], x[i4] - x[i5], x[i6] + x[i7], x[i6] - x[i7]
            a, b, c, d = a + c, b + d, a - c, b - d
            e, f, g, h = e + g, f + h, e - g, f - h
            x[i0], x[i1], x[i2], x[i3] = a + e, b + f, c + g, d + h
            x[i4], x[i5], x[i6], x[i7] = a - e, b - f, c - g, d - h


@compiled
def block_signs(block: int, key: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """The signs of a block's three rotations, elements 3 * 65,536 block, ... of a direction.

    uint32, shape (12, 4, 128): element e has bit e div 128 mod 32 of word
    [e div 128**2, e div (32 * 128) mod 4, e mod 128].
    """
    words = np.empty((12, 4, 128), np.uint32)
    for group in range(12):
        fill_words(words[group], (12 * block + group) * 128, 128, key)
    return words


@compiled
def multiply(
    x: NDArray[np.float32], length: int, factor: np.float32, signs: NDArray[np.uint32], offset: int
) -> None:
    """x_k <- fl(factor * x_k) with the sign of element ``offset`` + k, k < length."""
    k = 0
    while k < length:
        row, column = (offset + k) // 128, (offset + k) % 128
        stop = min(length, k + 128 - column)
        words, shift = signs[row >> 7, (row >> 5) & 3], np.uint32(31 - (row & 31))
        for i in range(stop - k):
            place = at(k + i)
            x[place] = signed(x[place] * factor, words[at(column + i)], shift)
        k = stop


@compiled
def rotate(x: NDArray[np.float32], length: int, block: int, key: NDArray[np.uint64]) -> None:
    """Rotate the numbers x_0, ..., x_(length - 1) of a block, a multiple of C of them."""
    signs, scale = block_signs(block, key), np.float32(1 / np.sqrt(_side(length)))
    multiply(x, length, np.float32(1), signs, 0)
    transform_neighbours(x, length)
    multiply(x, length, scale, signs, length)
    transform_distant(x, length)
    multiply(x, length, scale, signs, 2 * length)
    transform_neighbours(x, length)
    for k in range(length):
        x[k] *= scale


@compiled
def rotate_back(x: NDArray[np.float32], length: int, block: int, key: NDArray[np.uint64]) -> None:
    """The inverse of ``rotate`` but for rounding."""
    signs, scale = block_signs(block, key), np.float32(1 / np.sqrt(_side(length)))
    transform_neighbours(x, length)
    multiply(x, length, scale, signs, 2 * length)
    transform_distant(x, length)
    multiply(x, length, scale, signs, length)
    transform_neighbours(x, length)
    multiply(x, length, scale, signs, 0)


@kernel
def decode(start: int, stop: int, coded: CodedBlocks, numbers: NDArray[np.float32]) -> None:
    """Blocks start, ..., stop - 1 into ``numbers``, float32, shape (padded,)."""
    for block in range(start, stop):
        decode_block(coded, block, numbers[block * CODED_BLOCK : (block + 1) * CODED_BLOCK])


@compiled
def decode_block(coded: CodedBlocks, block: int, x: NDArray[np.float32]) -> None:
    """A block's numbers into x_0, x_1, ..."""
    first = block * CODED_BLOCK
    length = min(CODED_BLOCK, coded.padded - first)
    bit = first // coded.group * coded.bits
    if coded.levels.size:
        unpack_levels(x, length, coded, bit, coded.scales[block])
    elif coded.group == 1:
        unpack_signs(x, length, coded.codes, bit // 8, coded.scales[block])
    else:
        unpack_groups(x, length, coded, bit, coded.scales[block])
    rotate_back(x, length, block, coded.key)


@compiled
def unpack_signs(
    x: NDArray[np.float32], length: int, codes: NDArray[np.uint8], byte: int, scale: np.float32
) -> None:
    """x_k = scale where its bit is 1, else -scale, from codes[byte] on."""
    whole = length - length % 8
    for begin in range(0, whole, 8):
        word = ~(np.uint32(codes[at(byte + (begin >> 3))]) << np.uint32(24))
        for k in range(8):
            x[at(begin + k)] = signed(scale, word, np.uint32(k))
    for k in range(whole, length):
        x[k] = scale if read(codes, 8 * byte + k, 1) else -scale


@compiled
def unpack_levels(
    x: NDArray[np.float32], length: int, coded: CodedBlocks, bit: int, scale: np.float32
) -> None:
    """x_k = fl(its level * scale), from bit ``bit`` of the codes on."""
    for k in range(length):
        x[k] = coded.levels[read(coded.codes, bit + k * coded.bits, coded.bits)] * scale


@compiled
def unpack_groups(
    x: NDArray[np.float32], length: int, coded: CodedBlocks, bit: int, scale: np.float32
) -> None:
    """All x_k = 0 but one of each group, scale or -scale, from bit ``bit`` of the codes on."""
    for k in range(length):
        x[k] = np.float32(0)
    for n in range(length // coded.group):
        code = read(coded.codes, bit + n * coded.bits, coded.bits)
        largest = n * coded.group + (code & (coded.group - 1))
        x[at(largest)] = scale if code >= coded.group else -scale


@compiled
def read(codes: NDArray[np.uint8], bit: int, bits: int) -> int:
    """The code of so many bits, at most 16, its lowest first, from bit ``bit`` on."""
    byte, last = bit >> 3, len(codes) - 1
    word = np.int64(codes[at(byte)]) << 16
    word |= np.int64(codes[at(min(byte + 1, last))]) << 8
    word |= np.int64(codes[at(min(byte + 2, last))])
    code = (word >> (8 - (bit & 7))) & 0xFFFF
    for half, mask in ((1, 0x5555), (2, 0x3333), (4, 0x0F0F), (8, 0x00FF)):  # turn 16 bits around
        code = ((code & mask) << half) | ((code >> half) & mask)
    return int(code & ((1 << bits) - 1))


@compiled
def write(codes: NDArray[np.uint8], bit: int, bits: int, code: int) -> None:
    """The inverse of ``read``, where all bits are 0 before."""
    for n in range(bits):
        codes[at((bit + n) >> 3)] |= ((code >> n) & 1) << (7 - ((bit + n) & 7))


@kernel
def encode(start: int, stop: int, numbers: NDArray[np.float32], coded: CodedBlocks) -> None:
    """Blocks start, ..., stop - 1 of ``numbers``, float32, shape (K,), and of zeros after them.

    A block's codes and its scale, its energy over its product with the levels, go into ``coded``.
    """
    x = np.empty(CODED_BLOCK, np.float32)
    for block in range(start, stop):
        first = block * CODED_BLOCK
        length, count = (
            min(CODED_BLOCK, coded.padded - first),
            min(CODED_BLOCK, len(numbers) - first),
        )
        bit = first // coded.group * coded.bits
        coded.codes[bit // 8 : (bit + length // coded.group * coded.bits + 7) // 8] = 0
        x[:count] = numbers[first : first + count]
        x[count:length] = 0
        energy = sum_of_squares(x, count)
        rotate(x, length, block, coded.key)
        if coded.levels.size:
            along = pack_levels(x, length, coded, bit, np.sqrt(energy / length))
        elif coded.group == 1:
            along = pack_signs(x, length, coded.codes, bit)
        else:
            along = pack_groups(x, length, coded, bit)
        coded.scales[block] = energy / along if along > 0 else 0


@compiled
def sum_of_squares(x: NDArray[np.float32], count: int) -> float:
    """In float64, eight sums side by side, the last count mod 8 in the first of them."""
    sums, whole = np.zeros(8, np.float64), count - count % 8
    for begin in range(0, whole, 8):
        for lane in range(8):
            sums[lane] += np.float64(x[at(begin + lane)]) ** 2
    for k in range(whole, count):
        sums[0] += np.float64(x[at(k)]) ** 2
    return float(sums.sum())


@compiled
def pack_signs(x: NDArray[np.float32], length: int, codes: NDArray[np.uint8], bit: int) -> float:
    """A 1 for each x_k > 0; returns the sum of |x_k|, in the order of ``sum_of_squares``."""
    sums, whole = np.zeros(8, np.float64), length - length % 8
    for k in range(length):
        write(codes, bit + k, 1, x[at(k)] > 0)
        sums[k % 8 if k < whole else 0] += np.float64(abs(x[at(k)]))
    return float(sums.sum())


@compiled
def pack_levels(
    x: NDArray[np.float32], length: int, coded: CodedBlocks, bit: int, root_mean_square: float
) -> float:
    """The number of each x_k's nearest level, in units of the root mean square, from ``bit`` on.

    Returns the sum of x_k * level, in float64.
    """
    levels, along = coded.levels, 0.0
    bounds = np.empty(len(levels) - 1, np.float32)
    for n in range(len(bounds)):
        bounds[n] = (levels[n] + levels[n + 1]) / np.float32(2) * root_mean_square
    for k in range(length):
        nearest = 0
        for bound in bounds:
            nearest += x[k] > bound
        write(coded.codes, bit + k * coded.bits, coded.bits, nearest)
        along += np.float64(x[k]) * np.float64(levels[nearest])
    return along


@compiled
def pack_groups(x: NDArray[np.float32], length: int, coded: CodedBlocks, bit: int) -> float:
    """The place of each group's largest, the first of equals, and a 1 if it is above zero.

    Returns the sum of the largest absolute values, in float64.
    """
    along, group = 0.0, coded.group
    for n in range(length // group):
        begin, most = n * group, np.uint32(0)
        for k in range(begin, begin + group):  # absolute values have the order of their bits
            most = max(most, bits_of(x[at(k)]) & _ABSOLUTE)
        largest = 0
        while bits_of(x[at(begin + largest)]) & _ABSOLUTE != most:
            largest += 1
        value = x[at(begin + largest)]
        along += np.float64(abs(value))
        code = largest + group * (value > 0)
        write(coded.codes, bit + n * coded.bits, coded.bits, code)
    return along
