"""Reading a float32 as its bits and back, for numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_SIGN = np.uint32(0x80000000)


@intrinsic  # type: ignore[untyped-decorator]
def float_of(context: Any, bits: Any) -> Any:
    """The float32 with these bits (uint32 or int32)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(bits), generate


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(context: Any, number: Any) -> Any:
    """The bits of a float32, uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(number), generate


@njit(inline="always")
def signed(number, word, shift):  # type: ignore[no-untyped-def]
    """number, negated if bit 31 of word << shift is set."""
    return float_of(np.uint32(bits_of(number) ^ ((word << shift) & _SIGN)))
