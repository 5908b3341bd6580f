"""Which bits of a stream belong to which element.

Elements stand in rows of ``width``. The 128 bits of one Philox counter serve one
column of consecutive rows: 128 signs, 8 halves of 16 bits or 4 words. So any row
needs only the counters of its own columns, a kernel reuses each counter for as
many rows as it has parts, and neighbouring lanes read neighbouring memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fullfed.randomness import Stream

LANES = 128  # row width of everything that is not a sign basis
FOLD = 128  # rows added one after another before partial sums are added


def fields(stream: Stream, bits: int, width: int, first: int, rows: int) -> NDArray[np.uint32]:
    """The ``bits``-bit numbers of rows first, first + 1, ..., shape (rows, width).

    With n = 128 / bits parts to a counter, row q and column c own part q mod n of
    counter (q div n) * width + c; part p is the bits p * bits, p * bits + 1, ... of the
    counter's four output words, least significant first.
    """
    parts = 128 // bits
    group, end = first // parts, -(-(first + rows) // parts)
    words = stream.words(4 * width * (end - group), 4 * width * group)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    mask = np.uint32((1 << bits) - 1)
    split = (words.reshape(-1, width, 4, 1) >> shifts) & mask
    in_rows = np.moveaxis(split.reshape(-1, width, parts), 1, 2).reshape(-1, width)
    return in_rows[first - group * parts :][:rows]


def row_signs(
    stream: Stream, width: int, depth: int, counters: int, first: int, rows: int
) -> NDArray[np.uint32]:
    """The bits of signs of rows first, first + 1, ... of a sign basis, shape (rows, width).

    A counter serves ``depth`` rows. Where that is fewer than 128, all there are, its bits serve
    128 / depth columns: column c of row q owns bit depth * (c div counters) + q of counter
    c mod counters.
    """
    if depth == FOLD:
        return fields(stream, 1, width, first, rows)
    bits = fields(stream, 1, counters, 0, 128).reshape(-1, depth, counters)
    return bits.swapaxes(0, 1).reshape(depth, -1)[first : first + rows, :width]


def rotations(stream: Stream, width: int, first: int, rows: int) -> NDArray[np.int64]:
    """How far rows first, first + 1, ... are rotated, shape (rows,), each in [0, width)."""
    words = stream.words(rows, first).astype(np.uint64)
    return ((words * np.uint64(width)) >> np.uint64(32)).astype(np.int64)
