"""Many pieces of a model in one launch: a table of where they are, and numbers as they are stored.

The table, int64 of shape (4, pieces), holds the addresses of the pieces and of what they were
before, and their first and last-but-one elements' numbers, ascending.
"""

# Compile-time constants are upper case; only if with else is a compile-time branch.
# ruff: noqa: N803, RET505, SIM300
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def overlapping(table, count, begin, end):
    """The numbers of the first piece, and of the one after the last, with elements in begin:end."""
    return _at_most(table + 3 * count, count, begin), _at_most(table + 2 * count, count, end - 1)


@triton.jit
def _at_most(edges, count, bound):
    """How many of the ascending edges are at most the bound."""
    low, high = count * 0, count
    while low < high:
        middle = (low + high) // 2
        below = tl.load(edges + middle) <= bound
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit
def bounds(table, count, n):
    """The numbers of a piece's first element and of the one after its last."""
    return tl.load(table + 2 * count + n), tl.load(table + 3 * count + n)


@triton.jit
def pointer(table, n, STORED: tl.constexpr):
    """Where piece n of a row of addresses is."""
    return tl.load(table + n).to(tl.pointer_type(STORED))


@triton.jit
def widen(stored, STORED: tl.constexpr):
    """float32 of what was loaded; bfloat16 comes as int16, because the interpreter has none."""
    if STORED == tl.int16:
        return (stored.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return stored.to(tl.float32)


@triton.jit
def narrow(number, STORED: tl.constexpr):
    """The number rounded to nearest even, as it is stored."""
    if STORED == tl.int16:
        bits = number.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        kept = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded)
        return kept.to(tl.uint16).to(tl.int16, bitcast=True)
    else:
        return number.to(STORED)
