"""The sign basis in Triton: a program holds its counters' 128 signs each in registers."""

# Compile-time constants are upper case; only if with else is a compile-time branch.
# ruff: noqa: N803, RET505
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from fullfed.sketch.philox_cuda import philox, signed
from fullfed.sketch.pieces_cuda import bounds, narrow, overlapping, pointer, widen

PLAIN = [
    "count",
    "width",
    "first_group",
    "depth",
    "counters",
]  # no variant for 1 or multiples of 16


@triton.jit
def _places(row, rotation, columns, width, offset, end):
    """Where the elements of a row's columns are in the piece, and whether they are in it."""
    places = row * width - rotation + columns
    places = tl.where(columns < rotation, places + width, places)
    return places - offset, (columns < width) & (places >= offset) & (places < end)


@triton.jit
def _quads(group, width, depth, offset, end):
    """The first four of the group's rows with elements of the piece, and past the last."""
    begin = group * 128 * width
    first = (tl.maximum(offset - begin, 0) // width) // 4
    last = (tl.minimum(end - begin, depth * width) - 1) // width // 4
    return first.to(tl.int32), last.to(tl.int32) + 1


@triton.jit
def _rotation(word, width, ROTATED: tl.constexpr):
    if ROTATED:
        return tl.umulhi(word, width.to(tl.uint32)).to(tl.int64)
    else:
        return tl.zeros_like(word).to(tl.int64)


@triton.jit
def _start(keys, first_group, counters, BLOCK: tl.constexpr):
    """This program's group, counters and their four words of signs."""
    group = first_group.to(tl.int64) + tl.program_id(0)
    own = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    words = philox(
        group * counters + own,
        tl.load(keys + 2),
        tl.load(keys + 3),
        tl.load(keys + 0),
        tl.load(keys + 1),
    )
    return group, own, words


@triton.jit
def _pick(words, bit):
    """The word that has the bit."""
    low = tl.where(bit < 32, words[0], words[1])
    high = tl.where(bit < 96, words[2], words[3])
    return tl.where(bit < 64, low, high)


@triton.jit
def _turns(keys, counter):
    """The words that rotate four consecutive rows."""
    return philox(
        counter, tl.load(keys + 6), tl.load(keys + 7), tl.load(keys + 4), tl.load(keys + 5)
    )


@triton.jit(do_not_specialize=PLAIN)
def project(
    table,
    factors,
    count,
    sums,
    width,
    depth,
    counters,
    first_group,
    keys,
    ROTATED: tl.constexpr,
    HAS_BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    BEFORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """sums[group, column] += sign * change, rows in order; a program does BLOCK counters.

    A counter's bits are signs of ``depth`` rows in one column, of as many in the column
    ``counters`` further, and so on.
    """
    width, counters = width.to(tl.int64), counters.to(tl.int64)
    group, own, words = _start(keys, first_group, counters, BLOCK)
    first, last = overlapping(table, count, group * 128 * width, (group + 1) * 128 * width)
    for part in range(128 // depth):
        # Past the last counter there is another part's column.
        columns = tl.where(own < counters, part * counters + own, width)
        target = sums + group * width + columns
        total = tl.load(target, mask=columns < width, other=0.0)
        for n in range(first, last):
            offset, end = bounds(table, count, n)
            after, before = pointer(table, n, AFTER), pointer(table + count, n, BEFORE)
            factor = tl.load(factors + n)
            low, high = _quads(group, width, depth, offset, end)
            for quad in range(low, high):
                turns = _turns(keys, group * 32 + quad)
                bit = part * depth + quad * 4
                word = _pick(words, bit)
                for i in tl.static_range(4):
                    row = group * 128 + quad * 4 + i
                    rotation = _rotation(turns[i], width, ROTATED)
                    places, inside = _places(row, rotation, columns, width, offset, end)
                    change = widen(tl.load(after + places, mask=inside, other=0), AFTER)
                    if HAS_BEFORE:
                        old = tl.load(before + places, mask=inside, other=0)
                        change = change - widen(old, BEFORE)
                    change = change * factor
                    total += signed(change, word, 31 - (bit % 32 + i))
        tl.store(target, total, mask=columns < width)


@triton.jit(do_not_specialize=PLAIN)
def reconstruct(
    table,
    factors,
    count,
    values,
    width,
    depth,
    counters,
    first_group,
    keys,
    ROTATED: tl.constexpr,
    STORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """element += sign * factor * values[column]; programs as for project."""
    width, counters = width.to(tl.int64), counters.to(tl.int64)
    group, own, words = _start(keys, first_group, counters, BLOCK)
    first, last = overlapping(table, count, group * 128 * width, (group + 1) * 128 * width)
    for part in range(128 // depth):
        columns = tl.where(own < counters, part * counters + own, width)
        value = tl.load(values + columns, mask=columns < width, other=0.0)
        for n in range(first, last):
            offset, end = bounds(table, count, n)
            elements = pointer(table, n, STORED)
            step = value * tl.load(factors + n)
            low, high = _quads(group, width, depth, offset, end)
            for quad in range(low, high):
                turns = _turns(keys, group * 32 + quad)
                bit = part * depth + quad * 4
                word = _pick(words, bit)
                for i in tl.static_range(4):
                    row = group * 128 + quad * 4 + i
                    rotation = _rotation(turns[i], width, ROTATED)
                    places, inside = _places(row, rotation, columns, width, offset, end)
                    stored = widen(tl.load(elements + places, mask=inside, other=0), STORED)
                    changed = stored + signed(step, word, 31 - (bit % 32 + i))
                    tl.store(elements + places, narrow(changed, STORED), mask=inside)
