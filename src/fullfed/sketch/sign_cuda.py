"""The sign basis in Triton: a program holds 128 rows' signs of its columns in registers."""

# Compile-time constants are upper case; only if with else is a compile-time branch.
# ruff: noqa: N803, RET505
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from fullfed.sketch.philox_cuda import philox, signed
from fullfed.sketch.pieces_cuda import bounds, narrow, overlapping, pointer, widen

PLAIN = ["count", "width", "first_group"]  # no variant for 1 or multiples of 16


@triton.jit
def _places(row, rotation, columns, width, offset, end):
    """Where the elements of a row's columns are in the piece, and whether they are in it."""
    places = row * width - rotation + columns
    places = tl.where(columns < rotation, places + width, places)
    return places - offset, (columns < width) & (places >= offset) & (places < end)


@triton.jit
def _quads(group, width, offset, end):
    """The first four of the group's rows with elements of the piece, and past the last."""
    begin = group * 128 * width
    first = (tl.maximum(offset - begin, 0) // width) // 4
    last = (tl.minimum(end - begin, 128 * width) - 1) // width // 4
    return first.to(tl.int32), last.to(tl.int32) + 1


@triton.jit
def _rotation(word, width, ROTATED: tl.constexpr):
    if ROTATED:
        return tl.umulhi(word, width.to(tl.uint32)).to(tl.int64)
    else:
        return tl.zeros_like(word).to(tl.int64)


@triton.jit
def _start(keys, first_group, width, BLOCK: tl.constexpr):
    """This program's group, columns and their four words of signs."""
    group = first_group.to(tl.int64) + tl.program_id(0)
    columns = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    words = philox(
        group * width + columns,
        tl.load(keys + 2),
        tl.load(keys + 3),
        tl.load(keys + 0),
        tl.load(keys + 1),
    )
    return group, columns, words


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
    first_group,
    keys,
    ROTATED: tl.constexpr,
    HAS_BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    BEFORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """sums[group, column] += sign * change, rows in order; a program does BLOCK columns."""
    width = width.to(tl.int64)
    group, columns, words = _start(keys, first_group, width, BLOCK)
    target = sums + group * width + columns
    total = tl.load(target, mask=columns < width, other=0.0)
    first, last = overlapping(table, count, group * 128 * width, (group + 1) * 128 * width)
    for n in range(first, last):
        offset, end = bounds(table, count, n)
        after, before = pointer(table, n, AFTER), pointer(table + count, n, BEFORE)
        factor = tl.load(factors + n)
        low, high = _quads(group, width, offset, end)
        for plane in tl.static_range(4):
            for quad in range(tl.maximum(low - plane * 8, 0), tl.minimum(high - plane * 8, 8)):
                turns = _turns(keys, group * 32 + plane * 8 + quad)
                for i in tl.static_range(4):
                    row = group * 128 + plane * 32 + quad * 4 + i
                    rotation = _rotation(turns[i], width, ROTATED)
                    places, inside = _places(row, rotation, columns, width, offset, end)
                    change = widen(tl.load(after + places, mask=inside, other=0), AFTER)
                    if HAS_BEFORE:
                        old = tl.load(before + places, mask=inside, other=0)
                        change = change - widen(old, BEFORE)
                    change = change * factor
                    total += signed(change, words[plane], 31 - (quad * 4 + i))
    tl.store(target, total, mask=columns < width)


@triton.jit(do_not_specialize=PLAIN)
def reconstruct(
    table,
    factors,
    count,
    values,
    width,
    first_group,
    keys,
    ROTATED: tl.constexpr,
    STORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """element += sign * factor * values[column]; programs as for project."""
    width = width.to(tl.int64)
    group, columns, words = _start(keys, first_group, width, BLOCK)
    value = tl.load(values + columns, mask=columns < width, other=0.0)
    first, last = overlapping(table, count, group * 128 * width, (group + 1) * 128 * width)
    for n in range(first, last):
        offset, end = bounds(table, count, n)
        elements = pointer(table, n, STORED)
        step = value * tl.load(factors + n)
        low, high = _quads(group, width, offset, end)
        for plane in tl.static_range(4):
            for quad in range(tl.maximum(low - plane * 8, 0), tl.minimum(high - plane * 8, 8)):
                turns = _turns(keys, group * 32 + plane * 8 + quad)
                for i in tl.static_range(4):
                    row = group * 128 + plane * 32 + quad * 4 + i
                    rotation = _rotation(turns[i], width, ROTATED)
                    places, inside = _places(row, rotation, columns, width, offset, end)
                    stored = widen(tl.load(elements + places, mask=inside, other=0), STORED)
                    changed = stored + signed(step, words[plane], 31 - (quad * 4 + i))
                    tl.store(elements + places, narrow(changed, STORED), mask=inside)
