"""The blocks in which coordinates are rotated before they are coded."""

from __future__ import annotations

BLOCK = 65536  # numbers of a block, but for the last: they fit a core's cache


def side(length: int) -> int:
    """C of a block's rotation: the least power of 2 whose square is at least ``length``."""
    found = 1
    while found * found < length:
        found *= 2
    return found
