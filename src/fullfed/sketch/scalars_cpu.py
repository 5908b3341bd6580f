"""Single numbers in numba: float32 and its bits, 16-bit numbers and their rounding, signs.

bfloat16 arrives as uint16 and float16 as int16, so that the type says which is meant.
Every function is branch-free once compiled, so that loops over it vectorise.
"""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic, overload

_SIGN = np.uint32(0x80000000)
_SIZE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_RANGE = np.uint32(31)


@intrinsic
def _as_float(context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _as_bits(context: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@njit
def float_of(bits):
    """The float32 with these 32 bits."""
    return _as_float(np.uint32(bits))


@njit
def bits_of(number):
    """The bits of a float32, uint32."""
    return _as_bits(number)


@njit
def at(index):
    """An index known not to be negative.

    Python's indexing from the end defeats vectorisation. So do slices made in a loop, whose
    reference counts are atomic and shared by the threads; hence none in the kernels.
    """
    return np.uint64(index)


@njit
def signed(number, word, shift):
    """number, negated if bit 31 of word << shift is set."""
    return float_of(bits_of(number) ^ (shifted(word, shift) & _SIGN))


@njit
def shifted(word, shift):
    """word << shift, 0 <= shift < 32, in 32 bits.

    The mask tells LLVM the range. Without it, it shifts 64 bits, as numba's types have it, and
    has to rearrange vectors before and after.
    """
    return np.uint32(word << (shift & _RANGE))


def widen(stored: Any) -> Any:
    """The float32 equal to a stored number."""
    raise NotImplementedError("runs compiled only")


@overload(widen)
def _widen(stored):
    return {types.float32: _same, types.uint16: _from_bfloat16, types.int16: _from_float16}[stored]


def _same(stored):
    return stored


def _from_bfloat16(stored):
    return float_of(np.uint32(stored) << np.uint32(16))


def _from_float16(stored):
    bits = np.uint32(np.uint16(stored))
    size = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13))
    # Exponents differ by 112; the product is exact and also right for subnormals.
    scaled = bits_of(float_of(size) * np.float32(2.0**112))
    wide = size | _INFINITY if size >= np.uint32(0x0F800000) else scaled
    return float_of(wide | np.uint32((bits & np.uint32(0x8000)) << np.uint32(16)))


def narrow(number: Any, stored: Any) -> Any:
    """The number rounded to nearest even, in the type of ``stored``."""
    raise NotImplementedError("runs compiled only")


@overload(narrow)
def _narrow(number, stored):
    return {types.float32: _unrounded, types.uint16: _to_bfloat16, types.int16: _to_float16}[stored]


def _unrounded(number, stored):
    return number


def _to_bfloat16(number, stored):
    bits = bits_of(number)
    odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.uint16(np.uint32(0x7FC0) if (bits & _SIZE) > _INFINITY else rounded)


def _to_float16(number, stored):
    bits = bits_of(number)
    size = np.uint32(bits & _SIZE)
    # A sum with 0.5 has the unit of float16's subnormals as its last bit.
    small = np.uint32(bits_of(float_of(size) + np.float32(0.5)) - np.uint32(0x3F000000))
    odd = np.uint32(size >> np.uint32(13)) & np.uint32(1)
    normal = np.uint32(size - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    big = np.uint32(0x7E00) if size > _INFINITY else np.uint32(0x7C00)
    rounded = small if size < np.uint32(0x38800000) else normal
    kept = big if size >= np.uint32(0x47800000) else rounded
    return np.int16(
        np.uint32(kept) | np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    )
