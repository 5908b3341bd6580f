"""Dense directions, and rounding, in Triton."""

# Compile-time constants are upper case; only if with else is a compile-time branch.
# ruff: noqa: N803, N806
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from fullfed.sketch.philox_cuda import philox, value
from fullfed.sketch.pieces_cuda import bounds, narrow, overlapping, pointer, widen


@triton.jit
def _words(keys, k, counter):
    key = keys + k * 4
    return philox(counter, tl.load(key + 2), tl.load(key + 3), tl.load(key + 0), tl.load(key + 1))


@triton.jit
def products(piece, sums, keys, firsts, series, count, BITS: tl.constexpr, TERMS: tl.constexpr):
    """sums[part, k] = <direction k, part>, a part being 32 rows of 128; one program each.

    Directions start at a multiple of 32 rows, or of a counter's rows where those are fewer.
    """
    PARTS: tl.constexpr = 128 // BITS
    RUN: tl.constexpr = PARTS if PARTS < 32 else 32
    part, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lanes = tl.arange(0, 128)
    first = tl.load(firsts + k) + part * 32
    total = tl.zeros((128,), tl.float32)
    for run in range(32 // RUN):
        row = first + run * RUN
        w0, w1, w2, w3 = _words(keys, k, (row // PARTS) * 128 + lanes)
        held = row % PARTS * BITS // 32  # signs: 32 rows share one word; else the first
        for r in tl.static_range(RUN):
            word = held + r * BITS // 32
            mine = tl.where(word == 0, w0, tl.where(word == 1, w1, tl.where(word == 2, w2, w3)))
            line = tl.load(piece + (part * 32 + run * RUN + r) * 128 + lanes)
            total += value(mine, 32 - BITS - r * BITS % 32, BITS, series, TERMS) * line
    # Two numbers have one sum, so a reduction over an axis of two is exact in any order.
    for n in tl.static_range(7):
        total = tl.sum(tl.reshape(total, (2, 64 >> n)), axis=0)
    tl.store(sums + part * count + k, tl.sum(total, axis=0))


@triton.jit
def add_in_order(sums, parts, rows, count, BLOCK: tl.constexpr):
    """sums[g, k] += parts[128 g, k], then parts[128 g + 1, k], ...; a program does BLOCK k."""
    group = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    target = sums + group * count + k
    total = tl.load(target, mask=k < count, other=0.0)
    for i in range(tl.minimum(rows - group * 128, 128)):
        row = group * 128 + i
        total += tl.load(parts + row * count + k, mask=k < count, other=0.0)
    tl.store(target, total, mask=k < count)


@triton.jit(do_not_specialize=["pieces", "first_run"])
def add_combination(
    table,
    factors,
    pieces,
    first_run,
    keys,
    firsts,
    scalars,
    series,
    count,
    BITS: tl.constexpr,
    TERMS: tl.constexpr,
    RUN: tl.constexpr,
    STORED: tl.constexpr,
):
    """element += factor * sum of scalars[k] * direction k, k in order; a program does RUN rows.

    Directions start at a multiple of a counter's rows, and RUN divides those, so that a
    program's rows share their counters.
    """
    PARTS: tl.constexpr = 128 // BITS
    lanes = tl.arange(0, 128)[None, :]
    row = (first_run.to(tl.int64) + tl.program_id(0)) * RUN
    bit = (row % PARTS + tl.arange(0, RUN)[:, None]) * BITS
    word, shift = bit // 32, (32 - BITS - bit % 32).to(tl.uint32)
    total = tl.zeros((RUN, 128), tl.float32)
    for k in range(count):
        counter = (tl.load(firsts + k) + row) // PARTS * 128 + lanes
        w0, w1, w2, w3 = _words(keys, k, counter)
        mine = tl.where(word == 0, w0, tl.where(word == 1, w1, tl.where(word == 2, w2, w3)))
        total += tl.load(scalars + k) * value(mine, shift, BITS, series, TERMS)
    numbers = (row + tl.arange(0, RUN)[:, None]) * 128 + lanes
    first, last = overlapping(table, pieces, row * 128, (row + RUN) * 128)
    for n in range(first, last):
        offset, end = bounds(table, pieces, n)
        places, inside = pointer(table, n, STORED) + (numbers - offset), numbers < end
        inside = inside & (numbers >= offset)
        stored = widen(tl.load(places, mask=inside, other=0), STORED)
        tl.store(places, narrow(stored + total * tl.load(factors + n), STORED), mask=inside)


@triton.jit
def round_rows(target, wide, keys, offset, length):
    """Stochastic rounding to bfloat16 (as int16); one program for the 8 rows of a counter."""
    group = offset // 1024 + tl.program_id(0).to(tl.int64)
    lanes, rows = tl.arange(0, 128)[None, :], tl.arange(0, 8)[:, None]
    w0, w1, w2, w3 = _words(keys, 0, group * 128 + lanes)
    word = rows // 2
    mine = tl.where(word == 0, w0, tl.where(word == 1, w1, tl.where(word == 2, w2, w3)))
    half = (mine >> (16 * (rows % 2)).to(tl.uint32)) & 0xFFFF
    places = group * 1024 + rows * 128 + lanes - offset
    inside = (places >= 0) & (places < length)
    bits = tl.load(wide + places, mask=inside, other=0.0).to(tl.uint32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    kept = tl.where(finite, bits + half, bits) >> 16
    tl.store(target + places, kept.to(tl.uint16).to(tl.int16, bitcast=True), mask=inside)
