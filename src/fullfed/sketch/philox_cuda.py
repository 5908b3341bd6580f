"""Philox4x32-10 and the numbers made of it, in Triton."""

# Compile-time constants are upper case; only if with else is a compile-time branch.
# ruff: noqa: N803, RET505
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from fullfed.sketch import entries

SIGNS, TRUNCATED, NORMALS = 1, 16, 32  # bits a number
_SIGN = tl.constexpr(0x80000000)
_LOGARITHM = tl.constexpr(entries.LOGARITHM)
_CENTRE = tl.constexpr(entries.CENTRE)
_TAIL = tl.constexpr(entries.TAIL)
_LN2 = tl.constexpr(entries.LN2)
_SQRT2 = tl.constexpr(entries.SQRT2)
_OCTAVE = tl.constexpr(entries.HALF_OCTAVE)


@triton.jit
def philox(counter, c_round, c_owner, k0, k1):
    """The four output words (uint32) of an int64 counter, scalar or block."""
    c0 = counter.to(tl.uint32)
    c1 = (counter >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + c_round.to(tl.uint32)
    c3 = tl.zeros_like(c0) + c_owner.to(tl.uint32)
    k0, k1 = k0.to(tl.uint32), k1.to(tl.uint32)
    m0, m1 = tl.full((), 0xD2511F53, tl.uint32), tl.full((), 0xCD9E8D57, tl.uint32)
    w0, w1 = tl.full((), 0x9E3779B9, tl.uint32), tl.full((), 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        h0, h1 = tl.umulhi(m0, c0), tl.umulhi(m1, c2)
        c1, c3, c0, c2 = m1 * c2, m0 * c0, h1 ^ c1 ^ k0, h0 ^ c3 ^ k1
        k0, k1 = k0 + w0, k1 + w1
    return c0, c1, c2, c3


@triton.jit
def signed(number, word, shift):
    """number, negated if bit 31 of word << shift is set."""
    sign = (word << shift) & _SIGN
    return (number.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def value(word, shift, BITS: tl.constexpr, series, TERMS: tl.constexpr):
    """The number whose bits are the highest of word << shift."""
    if BITS == 1:
        return signed(tl.full(word.shape, 1.0, tl.float32), word, shift)
    elif BITS == 16:
        half = ((word << shift) >> 16).to(tl.int32)
        u = (2 * half - 65535).to(tl.float32) * 0.0000152587890625
        total = tl.zeros_like(u) + tl.load(series + TERMS - 1)
        for n in tl.static_range(1, TERMS):
            total = total * (u * u) + tl.load(series + TERMS - 1 - n)
        return total * u
    else:
        return _normal(word)


@triton.jit
def _normal(word):
    t = ((word << 1) | 1).to(tl.float32) * 2.3283064365386963e-10
    w = -_logarithm(t * (2.0 - t))
    centre = _polynomial(_CENTRE, w - 2.5)
    tail = _polynomial(_TAIL, tl.sqrt_rn(w) - 3.5)
    size = tl.where(w < 5.0, centre, tail) * (1.0 - t) * _SQRT2
    return signed(size, word, tl.zeros_like(word))


@triton.jit
def _logarithm(p):
    bits = p.to(tl.int32, bitcast=True)
    e = (bits - _OCTAVE) >> 23
    f = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    square = f * f
    rest = _polynomial(_LOGARITHM, f) * (f * square) - 0.5 * square
    return (f + rest) + e.to(tl.float32) * _LN2


@triton.jit
def _polynomial(coefficients: tl.constexpr, x):
    total = tl.zeros_like(x) + coefficients[0]
    for n in tl.static_range(1, 9):
        total = total * x + coefficients[n]
    return total
