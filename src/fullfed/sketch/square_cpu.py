"""Rotations of full blocks in numba: squares of 256 rows of 256 numbers.

A square passes twice through a core's second-level cache. First come bands of 16 rows: each row's
transform with the products before and after it, in registers, and the lower half of the columns'
levels. Then come 16 rows that stand 16 apart: the other levels, and each row's last transform. The
bits are those of rotation_cpu's steps for any length.
"""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

import numpy as np
from numba import njit

from fullfed.sketch.blocks import BLOCK
from fullfed.sketch.lanes_cpu import WIDTH, prefetch
from fullfed.sketch.philox_cpu import fill_words
from fullfed.sketch.rows_cpu import (
    ROWS,
    SIDE,
    add_rows,
    transform_row,
    transform_row_first,
    transform_row_last,
    transform_row_of_bytes,
    transform_row_unsigned,
)


@njit
def rotate_square(held, number, keys):
    """rotation_cpu.rotate of a block."""
    early, middle, late = _words(number, keys)
    bands = np.empty(ROWS * SIDE, np.float32)
    for band in range(0, SIDE, ROWS):
        for row in range(band, band + ROWS):
            place = row * SIDE
            transform_row_first(held, place, held, place, *_signs_of(row), early, middle)
        _add_band(held, band * SIDE)
    for row in range(ROWS):
        _add_bands(held, row * SIDE, bands)
        for n in range(ROWS):
            there = row + n * ROWS
            signs = _signs_of(there)
            transform_row_last(bands, n * SIDE, held, there * SIDE, *signs, late, late)


@njit
def rotate_square_back(held, number, keys, target, spot):
    """rotation_cpu.rotate_back of a block."""
    early, middle, late = _words(number, keys)
    for band in range(0, SIDE, ROWS):
        for row in range(band, band + ROWS):
            place = row * SIDE
            transform_row_unsigned(held, place, held, place, *_signs_of(row), late, late)
        _add_band(held, band * SIDE)
    _finish(held, middle, early, target, spot)


@njit
def rotate_bytes_back(codes, first, table, held, number, keys, target, spot):
    """rotate_square_back of what codes[first], ... stand for, a byte for 8 numbers.

    Row c of the table has levels 1, 2 and 4 of the 8 that byte c means; float32, shape (256, 8),
    flat. ``held`` has room for a block.
    """
    early, middle, late = _words(number, keys)
    for band in range(0, SIDE, ROWS):
        for row in range(band, band + ROWS):
            byte, place = first + (row * SIDE >> 3), row * SIDE
            transform_row_of_bytes(codes, byte, table, held, place, *_signs_of(row), late)
        _add_band(held, band * SIDE)
    _finish(held, middle, early, target, spot)


@njit
def _finish(held, middle, early, target, spot):
    """What is left to rotate back when bands are done."""
    bands = np.empty(ROWS * SIDE, np.float32)
    for row in range(ROWS):
        _add_bands(held, row * SIDE, bands)
        for n in range(ROWS):
            there = row + n * ROWS
            place, signs = spot + there * SIDE, _signs_of(there)
            for line in range(place + SIDE, place + 2 * SIDE, 16):  # what comes 16 rows from now
                prefetch(target, line)
            transform_row(bands, n * SIDE, target, place, *signs, middle, early)


@njit
def _words(number, keys):
    """The signs of a block's three directions, each uint32, shape (2048,)."""
    return (
        _words_of(3 * number, keys),
        _words_of(3 * number + BLOCK, keys),
        _words_of(3 * number + 2 * BLOCK, keys),
    )


@njit
def _words_of(element, keys):
    words = np.empty((4, 4, 128), np.uint32)
    for group in range(4):
        fill_words(words[group], (element >> 7) + 128 * group, 128, keys, 0)
    return words.reshape(-1)


@njit
def _signs_of(row):
    """From which word on a row's signs are, and how far left its first half's bit has to go."""
    return (row >> 4) * 128, 31 - ((2 * row) & 31)


@njit
def _add_band(vector, place):
    """Levels 1 to 8 of the columns of consecutive rows."""
    for column in range(place, place + SIDE, WIDTH):
        add_rows(vector, column, SIDE, vector, column)


@njit
def _add_bands(vector, place, bands):
    """Levels 16 to 128 of the columns; rows 16 apart go together into ``bands``."""
    for column in range(0, SIDE, WIDTH):
        add_rows(vector, place + column, ROWS * SIDE, bands, column)
