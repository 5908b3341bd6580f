"""Philox4x32-10 and the numbers made of it, in Triton."""

# Compile-time constants are upper case; only if with else is a compile-time branch.
# ruff: noqa: N803, RET505
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from fullfed.sketch import entries

_SIGN = tl.constexpr(0x80000000)
_LOGARITHM = tl.constexpr(entries.LOGARITHM)
_COSINE = tl.constexpr(entries.COSINE)
_SINE = tl.constexpr(entries.SINE)
_OCTAVES = tl.constexpr(entries.OCTAVES)
_TOP = tl.constexpr(entries.TOP)


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
    elif TERMS == 0:
        return _normal(word, shift == 0)
    else:
        half = ((word << shift) >> 16).to(tl.int32)
        u = (2 * half - 65535).to(tl.float32) * 0.0000152587890625
        total = tl.zeros_like(u) + tl.load(series + TERMS - 1)
        for n in tl.static_range(1, TERMS):
            total = total * (u * u) + tl.load(series + TERMS - 1 - n)
        return total * u


@triton.jit
def _normal(word, second):
    """Of a word's two, the first or the second."""
    u = (2 * ((word >> 1) & 0x7FFF).to(tl.int32) - 32767).to(tl.float32) * 0.000030517578125
    turned = tl.where(second, u * _polynomial(_SINE, 4, u * u), _polynomial(_COSINE, 5, u * u))
    return signed(_radius(word), word, tl.full((), 31, tl.uint32)) * turned


@triton.jit
def _radius(word):
    bits = ((word >> 15) | 1).to(tl.float32).to(tl.int32, bitcast=True)
    octaves = (-(bits - _TOP)).to(tl.float32)
    g = 2.0 - ((bits & 0x7FFFFF) + 0x3F800000).to(tl.float32, bitcast=True)
    return tl.sqrt_rn(octaves * _OCTAVES + g * _logarithm(g))


@triton.jit
def _logarithm(g):
    low = g * _LOGARITHM[1] + _LOGARITHM[0]
    middle = g * _LOGARITHM[3] + _LOGARITHM[2]
    high = g * _LOGARITHM[5] + _LOGARITHM[4]
    square = g * g
    return (square * _LOGARITHM[6] + high) * (square * square) + (middle * square + low)


@triton.jit
def _polynomial(coefficients: tl.constexpr, LENGTH: tl.constexpr, x):
    total = tl.zeros_like(x) + coefficients[LENGTH - 1]
    for n in tl.static_range(1, LENGTH):
        total = total * x + coefficients[LENGTH - 1 - n]
    return total
