"""Philox4x32-10 for numba, written so that LLVM vectorises it over consecutive counters."""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

import numpy as np
from numba import njit

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


@njit(inline="always")
def _round(c0, c1, c2, c3, k0, k1, n):
    k0 = (k0 + np.uint64(n) * _W0) & _LOW
    k1 = (k1 + np.uint64(n) * _W1) & _LOW
    p0, p1 = _M0 * c0, _M1 * c2
    return (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW


@njit(nogil=True, cache=True)
def fill_words(words, first, count, keys, which):
    """words[:, i] = Philox of counter (first + i, round, owner); uint32, shape (4, >= count).

    keys[which] is uint64: the stream's two key words, its round and its owner.
    """
    k0, k1, c_round, c_owner = keys[which, 0], keys[which, 1], keys[which, 2], keys[which, 3]
    for i in range(count):
        position = np.uint64(first) + np.uint64(i)
        c0, c1, c2, c3 = position & _LOW, position >> _SHIFT, c_round, c_owner
        # Ten calls, not a loop: a loop here would keep the outer one from vectorising.
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1, 0)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1, 1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1, 2)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1, 3)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1, 4)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1, 5)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1, 6)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1, 7)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1, 8)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1, 9)
        words[0, i], words[1, i] = np.uint32(c0), np.uint32(c1)
        words[2, i], words[3, i] = np.uint32(c2), np.uint32(c3)
