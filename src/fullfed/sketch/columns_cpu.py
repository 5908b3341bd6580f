"""Coordinates as kernels read them: where they are, or decoded a stretch at a time."""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from fullfed.sketch.blocks import BLOCK
from fullfed.sketch.decoding_cpu import decode_block, new_tables


def room_for(values: Any, most: Any) -> Any:
    """What ``columns`` works in for up to ``most`` of these coordinates."""
    raise NotImplementedError("runs compiled only")


@overload(room_for)
def _room_for(values, most):
    return _nothing if isinstance(values, types.Array) else _room_of_blocks


def _nothing(values, most):
    return None


def _room_of_blocks(values, most):
    return np.empty((most // BLOCK + 2) * BLOCK, np.float32), new_tables()


def columns(values: Any, left: Any, right: Any, room: Any) -> Any:
    """An array that begins with the coordinates left to right - 1."""
    raise NotImplementedError("runs compiled only")


@overload(columns)
def _columns(values, left, right, room):
    return _in_memory if isinstance(values, types.Array) else _decoded


def _in_memory(values, left, right, room):
    return values[left:right]


def _decoded(values, left, right, room):
    decoded, tables = room
    first = left // BLOCK
    for block in range(first, (right - 1) // BLOCK + 1):
        own = decoded[(block - first) * BLOCK : (block - first + 1) * BLOCK]
        decode_block(values, block, own, own, 0, tables)
    return decoded[left - first * BLOCK :]
