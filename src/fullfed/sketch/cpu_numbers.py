"""numba building blocks: the random generator (Philox) and bit-level float operations.

Compiled kernels hold bfloat16 as uint16 and float16 as int16, so that the type says which it is.
No function here branches once it is compiled, so that loops over it vectorise.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.extending import overload
from numpy.typing import NDArray

Compiled = TypeVar("Compiled", bound=Callable[..., Any])

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _WORD = np.uint64(0xFFFFFFFF), np.uint64(32)

_SIGN = np.uint32(0x80000000)
_SIZE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_RANGE = np.uint32(31)


class _Cache(FunctionCache):
    """Numba's cache of compiled functions, stale when any source of the kernels has changed.

    Numba itself looks at the one file that a function is in, not at functions compiled into it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        base, path = self._impl.filename_base, self._cache_path
        self._cache_file = IndexDataCacheFile(path, base, _digest_of_sources())  # type: ignore[no-untyped-call]


@functools.cache
def _digest_of_sources() -> str:
    """SHA-256 of this package's files; the cache notes the version of numba itself."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()


def kernel(function: Compiled) -> Compiled:
    """Compile a function that Python calls; it releases the GIL and is cached on disk."""
    dispatcher: Any = njit(nogil=True)(function)
    dispatcher._cache = _Cache(function)
    return cast(Compiled, dispatcher)


def compiled(function: Compiled) -> Compiled:
    """Compile a function that kernels call."""
    return cast(Compiled, njit(function))


def inlined(function: Compiled) -> Compiled:
    """Compile a function into its callers, where constant arguments are then constants."""
    return cast(Compiled, njit(forceinline=True)(function))


@inlined
def _philox_round(
    c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64, k0: np.uint64, k1: np.uint64, n: int
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    k0 = (k0 + np.uint64(n) * _W0) & _LOW
    k1 = (k1 + np.uint64(n) * _W1) & _LOW
    p0, p1 = _M0 * c0, _M1 * c2
    return (p1 >> _WORD) ^ c1 ^ k0, p1 & _LOW, (p0 >> _WORD) ^ c3 ^ k1, p0 & _LOW


@compiled
def fill_words(words: NDArray[np.uint32], first: int, count: int, key: NDArray[np.uint64]) -> None:
    """words[:, i] = Philox4x32-10 of counter (first + i, round, owner).

    Args:
        words: uint32, shape (4, at least count).
        first, count: the outputs first, ..., first + count - 1 of the stream.
        key: uint64, shape (4,): the stream's two key words, its round and its owner.
    """
    k0, k1, c_round, c_owner = key[0], key[1], key[2], key[3]
    for i in range(count):
        position = np.uint64(first) + np.uint64(i)
        c0, c1, c2, c3 = position & _LOW, position >> _WORD, c_round, c_owner
        # Ten calls, not a loop: a loop here would keep the outer one from vectorising.
        c0, c1, c2, c3 = _philox_round(c0, c1, c2, c3, k0, k1, 0)
        c0, c1, c2, c3 = _philox_round(c0, c1, c2, c3, k0, k1, 1)
        c0, c1, c2, c3 = _philox_round(c0, c1, c2, c3, k0, k1, 2)
        c0, c1, c2, c3 = _philox_round(c0, c1, c2, c3, k0, k1, 3)
        c0, c1, c2, c3 = _philox_round(c0, c1, c2, c3, k0, k1, 4)
        c0, c1, c2, c3 = _philox_round(c0, c1, c2, c3, k0, k1, 5)
        c0, c1, c2, c3 = _philox_round(c0, c1, c2, c3, k0, k1, 6)
        c0, c1, c2, c3 = _philox_round(c0, c1, c2, c3, k0, k1, 7)
        c0, c1, c2, c3 = _philox_round(c0, c1, c2, c3, k0, k1, 8)
        c0, c1, c2, c3 = _philox_round(c0, c1, c2, c3, k0, k1, 9)
        words[0, i], words[1, i] = np.uint32(c0), np.uint32(c1)
        words[2, i], words[3, i] = np.uint32(c2), np.uint32(c3)


@compiled
def float_of(bits: np.uint32) -> np.float32:
    """The float32 with these bits."""
    return np.uint32(bits).view(np.float32)


@compiled
def bits_of(number: np.float32) -> np.uint32:
    """The bits of a float32."""
    return np.float32(number).view(np.uint32)


@compiled
def at(index: int) -> np.uint64:
    """An index that is not negative.

    Numba counts a negative one from the end, and a loop that tests for it is not vectorised.
    """
    return np.uint64(index)


@compiled
def shifted(word: np.uint32, shift: np.uint32) -> np.uint32:
    """word << shift in 32 bits, 0 <= shift < 32.

    The mask tells LLVM the range. Without it, it shifts 64 bits, as numba's types have it, and
    has to rearrange vectors before and after.
    """
    return np.uint32(word << (shift & _RANGE))


@compiled
def signed(number: np.float32, word: np.uint32, shift: np.uint32) -> np.float32:
    """The number, negated if bit 31 of word << shift is set."""
    return float_of(bits_of(number) ^ (shifted(word, shift) & _SIGN))


def widen(stored: Any) -> Any:
    """The float32 equal to a stored number: a float32, or a bfloat16 or float16 as an integer."""
    raise NotImplementedError("runs compiled only")


@overload(widen, strict=False)
def _widen(stored: Any) -> Any:
    return {types.float32: _same, types.uint16: _from_bfloat16, types.int16: _from_float16}[stored]


def _same(stored: np.float32) -> np.float32:
    return stored


def _from_bfloat16(stored: np.uint16) -> np.float32:
    return float_of(np.uint32(stored) << np.uint32(16))


def _from_float16(stored: np.int16) -> np.float32:
    bits = np.uint32(np.uint16(stored))
    size = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13))
    normal = np.uint32(size + np.uint32(112 << 23))  # exponents differ by 112
    # A subnormal becomes the fraction of a number from 2**-14 on: no step has a float32 subnormal,
    # which processors are slow at.
    small = bits_of(float_of(size + np.uint32(113 << 23)) - np.float32(2.0**-14))
    finite = normal if size >= np.uint32(1 << 23) else small
    wide = size | _INFINITY if size >= np.uint32(0x0F800000) else finite
    return float_of(wide | np.uint32((bits & np.uint32(0x8000)) << np.uint32(16)))


def narrow(number: Any, stored: Any) -> Any:
    """A float32 rounded to nearest even, in the type of ``stored``; a NaN to 0x7FC0 or 0x7E00."""
    raise NotImplementedError("runs compiled only")


@overload(narrow, strict=False)
def _narrow(number: Any, stored: Any) -> Any:
    return {types.float32: _unrounded, types.uint16: _to_bfloat16, types.int16: _to_float16}[stored]


def _unrounded(number: np.float32, stored: np.float32) -> np.float32:
    return number


def _to_bfloat16(number: np.float32, stored: np.uint16) -> np.uint16:
    bits = bits_of(number)
    odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.uint16(np.uint32(0x7FC0) if (bits & _SIZE) > _INFINITY else rounded)


def _to_float16(number: np.float32, stored: np.int16) -> np.int16:
    bits = bits_of(number)
    size = np.uint32(bits & _SIZE)
    # A sum with 0.5 has the unit of float16's subnormals as its last bit.
    small = np.uint32(bits_of(float_of(size) + np.float32(0.5)) - np.uint32(0x3F000000))
    odd = np.uint32(size >> np.uint32(13)) & np.uint32(1)
    normal = np.uint32(size - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    rounded = small if size < np.uint32(0x38800000) else normal
    kept = np.uint32(0x7C00) if size >= np.uint32(0x47800000) else rounded
    signed_ = np.uint32(kept) | np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    return np.int16(np.uint32(0x7E00) if size > _INFINITY else signed_)


@kernel
def find_not_finite(
    start: int, stop: int, bits: NDArray[np.uint32], found: NDArray[np.bool_]
) -> None:
    """found[0] = True if bits start, ..., stop - 1 have one of a float32 that is not finite."""
    largest = np.uint32(0)
    for i in range(start, stop):
        largest = max(largest, bits[at(i)] & _SIZE)
    if largest >= _INFINITY:
        found[0] = True


@kernel
def fold(start: int, stop: int, rows: NDArray[np.float32], sums: NDArray[np.float32]) -> None:
    """sums[g] = rows[128 g] + rows[128 g + 1] + ... from zero, for columns start, ..., stop - 1.

    Args:
        rows: float32, shape (n, width).
        sums: float32, shape (ceil(n / 128), width).
    """
    for group in range(sums.shape[0]):
        for column in range(start, stop):
            sums[group, column] = np.float32(0)
        for row in range(128 * group, min(128 * group + 128, rows.shape[0])):
            for column in range(start, stop):
                sums[group, column] += rows[row, column]
