"""Packs increasing positions into few bits (Rice code), for sparse reports; and bits into bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fullfed.errors import MessageError


def rice_bits(count: int, size: int) -> int:
    """r: how many low bits of gaps between ``count`` of ``size`` positions are sent as they are.

    A position costs 1 + r + 1 / (exp(x) - 1) bits on average over random positions, with
    x = count 2**r / size. That is least for x from log(golden ratio) = 0.4812 to twice that, and
    0.02 to 0.12 bits above the entropy.
    """
    r = 0
    while 100_000 * count << r < 48_121 * size:
        r += 1
    return r


def encode_positions(
    positions: NDArray[np.int64], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Increasing positions below ``size``, by a Rice code of the gaps between them (Rice 1979).

    Returns:
        for each gap (how many positions were passed over) its upper bits q as q ones and a zero,
        the last byte filled with ones; and its lower ``rice_bits``. Highest bits first.
    """
    if len(positions) == 0:
        return np.zeros(0, np.uint8), np.zeros(0, np.uint8)
    r = rice_bits(len(positions), size)
    gaps = np.diff(positions, prepend=-1) - 1
    zeros = np.cumsum((gaps >> r) + 1) - 1
    unary = np.ones(-(-int(zeros[-1] + 1) // 8) * 8, np.uint8)
    unary[zeros] = 0
    return np.packbits(unary), pack_bits(gaps & ((1 << r) - 1), r)


def decode_positions(
    high: NDArray[np.uint8], low: NDArray[np.uint8], size: int
) -> NDArray[np.int64]:
    """
    Raises:
        MessageError: these are not positions below ``size``.
    """
    zeros = np.flatnonzero(np.unpackbits(high) == 0)
    count = len(zeros)
    last = int(zeros[-1]) if count else -1
    if count > size or len(high) != -(-(last + 1) // 8):
        raise MessageError("the report's positions are malformed")
    r = rice_bits(count, size) if count else 0
    if len(low) != -(-count * r // 8):
        raise MessageError("the report's positions lack their lower bits")
    upper = np.diff(zeros, prepend=-1) - 1
    positions = np.cumsum((upper << r | unpack_bits(low, count, r)) + 1) - 1
    if count and positions[-1] >= size:
        raise MessageError(f"the report's positions go beyond the {size} parameters")
    return positions


def pack_bits(numbers: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Numbers of ``bits`` bits one after another, highest bit first, zeros at the end."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits((numbers[:, None] >> places & 1).astype(np.uint8))


def unpack_bits(packed: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.int64]:
    """The first ``count`` numbers that ``pack_bits`` packed."""
    rows = np.unpackbits(packed, count=count * bits).reshape(count, bits).astype(np.int64)
    return rows @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))
