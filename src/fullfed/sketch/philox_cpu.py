"""Philox4x32-10 for numba, written so that LLVM vectorises it over consecutive counters."""

from __future__ import annotations

import numpy as np
from numba import njit

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


@njit(inline="always")
def _round(c0, c1, c2, c3, key, n):  # type: ignore[no-untyped-def]
    k0 = (key[0] + np.uint64(n) * _W0) & _LOW
    k1 = (key[1] + np.uint64(n) * _W1) & _LOW
    p0, p1 = _M0 * c0, _M1 * c2
    return (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW


@njit(nogil=True, cache=True)
def fill_words(words, first, count, key):  # type: ignore[no-untyped-def]
    """words[:, i] = Philox of counter (first + i, round, owner); uint32, shape (4, >= count).

    key is uint64: the stream's two key words, its round and its owner.
    """
    for i in range(count):
        position = np.uint64(first) + np.uint64(i)
        c0, c1, c2, c3 = position & _LOW, position >> _SHIFT, key[2], key[3]
        # Ten calls, not a loop: a loop here would keep the outer one from vectorising.
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key, 0)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key, 1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key, 2)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key, 3)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key, 4)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key, 5)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key, 6)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key, 7)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key, 8)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key, 9)
        words[0, i], words[1, i] = np.uint32(c0), np.uint32(c1)
        words[2, i], words[3, i] = np.uint32(c2), np.uint32(c3)
