"""The Triton kernels of 16-bit weights: stochastic rounding, and dither that rounding takes away.

One program is for the 8 rows of 128 elements that a counter's outputs have 16 bits for.
"""

# Compile-time constants are upper case.
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from fullfed.sketch.cuda_kernels import words_of


@triton.jit
def _halves(keys, offset, length):
    """Where the program's elements are, which of these there are, and 16 random bits for each."""
    group = offset // 1024 + tl.program_id(0).to(tl.int64)
    lanes, rows = tl.arange(0, 128)[None, :], tl.arange(0, 8)[:, None]
    w0, w1, w2, w3 = words_of(keys, 0, group * 128 + lanes)
    word = rows // 2
    mine = tl.where(word == 0, w0, tl.where(word == 1, w1, tl.where(word == 2, w2, w3)))
    half = (mine >> (16 * (rows % 2)).to(tl.uint32)) & 0xFFFF
    places = group * 1024 + rows * 128 + lanes - offset
    return places, (places >= 0) & (places < length), half


@triton.jit
def round_rows(target, wide, keys, offset, length):
    """Stochastic rounding to bfloat16 (as int16)."""
    places, inside, half = _halves(keys, offset, length)
    bits = tl.load(wide + places, mask=inside, other=0.0).to(tl.uint32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    kept = tl.where(finite, bits + half, bits) >> 16
    tl.store(target + places, kept.to(tl.uint16).to(tl.int16, bitcast=True), mask=inside)


@triton.jit
def dither_rows(wide, keys, offset, length, DROPPED: tl.constexpr):
    """Other float32 numbers that round to the same 16-bit ones."""
    places, inside, half = _halves(keys, offset, length)
    bits = tl.load(wide + places, mask=inside, other=0.0).to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    drawn = half >> (16 - DROPPED)
    drawn = tl.where(drawn == 0, 1, drawn).to(tl.uint32)
    moved = bits + drawn - (1 << (DROPPED - 1))
    kept = tl.where((size == 0) | (size >= 0x7F800000), bits, moved).to(tl.uint32)
    tl.store(wide + places, kept.to(tl.float32, bitcast=True), mask=inside)
