"""The sign basis in Triton: a program holds 128 rows' signs of its columns in registers."""

# Compile-time constants are upper case; only if with else is a compile-time branch.
# ruff: noqa: N803, RET505
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from fullfed.sketch.philox_cuda import narrow, philox, signed, widen

PLAIN = ["offset", "length", "width", "first_group"]  # no variant for 1 or multiples of 16


@triton.jit
def _places(row, rotation, columns, width, offset, length):
    """Where the elements of a row's columns are in the tensor, and whether they are in it."""
    places = row * width - offset - rotation + columns
    places = tl.where(columns < rotation, places + width, places)
    return places, (columns < width) & (places >= 0) & (places < length)


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
    after,
    before,
    weight,
    offset,
    length,
    sums,
    width,
    first_group,
    keys,
    ROTATED: tl.constexpr,
    HAS_BEFORE: tl.constexpr,
    AFTER_BFLOAT: tl.constexpr,
    BEFORE_BFLOAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """sums[group, column] += sign * change, rows in order; a program does BLOCK columns."""
    width, offset, length = width.to(tl.int64), offset.to(tl.int64), length.to(tl.int64)
    group, columns, words = _start(keys, first_group, width, BLOCK)
    target = sums + group * width + columns
    total = tl.load(target, mask=columns < width, other=0.0)
    for plane in tl.static_range(4):
        for quad in range(8):
            turns = _turns(keys, group * 32 + plane * 8 + quad)
            for i in tl.static_range(4):
                row = group * 128 + plane * 32 + quad * 4 + i
                rotation = _rotation(turns[i], width, ROTATED)
                places, inside = _places(row, rotation, columns, width, offset, length)
                change = widen(tl.load(after + places, mask=inside, other=0), AFTER_BFLOAT)
                if HAS_BEFORE:
                    old = tl.load(before + places, mask=inside, other=0)
                    change = change - widen(old, BEFORE_BFLOAT)
                change = change * weight
                total += signed(change, words[plane], 31 - (quad * 4 + i))
    tl.store(target, total, mask=columns < width)


@triton.jit(do_not_specialize=PLAIN)
def reconstruct(
    elements,
    offset,
    length,
    values,
    scale,
    width,
    first_group,
    keys,
    ROTATED: tl.constexpr,
    BFLOAT: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """element += sign * scale * values[column]; programs as for project."""
    width, offset, length = width.to(tl.int64), offset.to(tl.int64), length.to(tl.int64)
    group, columns, words = _start(keys, first_group, width, BLOCK)
    step = tl.load(values + columns, mask=columns < width, other=0.0) * scale
    for plane in tl.static_range(4):
        for quad in range(8):
            turns = _turns(keys, group * 32 + plane * 8 + quad)
            for i in tl.static_range(4):
                row = group * 128 + plane * 32 + quad * 4 + i
                rotation = _rotation(turns[i], width, ROTATED)
                places, inside = _places(row, rotation, columns, width, offset, length)
                stored = widen(tl.load(elements + places, mask=inside, other=0), BFLOAT)
                total = stored + signed(step, words[plane], 31 - (quad * 4 + i))
                tl.store(elements + places, narrow(total, BFLOAT, HALF), mask=inside)
