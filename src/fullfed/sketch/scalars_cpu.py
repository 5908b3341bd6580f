"""Single numbers in numba: float32 and its bits, 16-bit numbers and their rounding, signs.

bfloat16 arrives as uint16 and float16 as int16, so that the type says which is meant.
Every function is branch-free once compiled, so that loops over it vectorise.
"""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, njit, types
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


@intrinsic
def _from_half(context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), generate


@intrinsic
def _to_half(context: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), generate


_HERE = not (config.CPU_NAME or config.CPU_FEATURES)  # type: ignore[attr-defined]


def processor_has(feature: str) -> bool:
    """Whether the processor that numba compiles for is known to; if it is another, it is not."""
    return _HERE and bool(binding.get_host_cpu_features().get(feature, False))


# Whether it converts float16. Where it does not, LLVM would call functions that are not there.
_HALVES = processor_has("f16c") or (_HERE and platform.machine() in ("aarch64", "arm64"))


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
    halves = _from_float16 if _HALVES else _from_float16_by_integers
    return {types.float32: _same, types.uint16: _from_bfloat16, types.int16: halves}[stored]


def _same(stored):
    return stored


def _from_bfloat16(stored):
    return float_of(np.uint32(stored) << np.uint32(16))


def _from_float16(stored):
    return _from_half(stored)


def _from_float16_by_integers(stored):
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
    """The number rounded to nearest even, in the type of ``stored``."""
    raise NotImplementedError("runs compiled only")


@overload(narrow)
def _narrow(number, stored):
    halves = _to_float16 if _HALVES else _to_float16_by_integers
    return {types.float32: _unrounded, types.uint16: _to_bfloat16, types.int16: halves}[stored]


def _unrounded(number, stored):
    return number


def _to_bfloat16(number, stored):
    bits = bits_of(number)
    odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.uint16(np.uint32(0x7FC0) if (bits & _SIZE) > _INFINITY else rounded)


def _to_float16(number, stored):
    bits = bits_of(number)
    sign = np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000)
    return np.int16(np.uint32(0x7E00) | sign) if (bits & _SIZE) > _INFINITY else _to_half(number)


def _to_float16_by_integers(number, stored):
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
