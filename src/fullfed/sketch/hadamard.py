"""A random rotation of a vector, after which its entries look like draws of one normal law."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fullfed.sketch.generator import Stream

_LARGEST = 1024  # of C: what is spread over a million entries is spread enough


def block_size(count: int) -> int:
    """C, whose multiples are rotated: the least power of 2 whose square is at least ``count``.

    It is at most 1,024.
    """
    return min(_LARGEST, 1 << -(-(count - 1).bit_length() // 2))


def rotate_(vector: Tensor, stream: Stream) -> None:
    """x <- H D'' H' D' H D x: three times random signs and Walsh-Hadamard transforms of C entries.

    H transforms C neighbours at a time, H' C entries at equal distances over the whole
    vector. After two an entry is spread over all places, after three every place holds a sum of
    many, also for a vector that has few. Every operation is a float32 sum, difference or product
    of two numbers in a fixed order, so the result has the same bits everywhere.

    Args:
        vector: float32, shape (n,), on the CPU; n a multiple of C.
        stream: of the signs.
    """
    from fullfed.sketch import cpu  # imports numba

    count, size = len(vector), block_size(len(vector))
    cpu.rotate_neighbours(vector, size, stream, before=0, after=count)
    cpu.rotate_distant(vector, size)
    cpu.rotate_neighbours(vector, size, stream, before=2 * count, after=None)


def rotate_back_(vector: Tensor, stream: Stream, first: Callable[..., None]) -> None:
    """The inverse of ``rotate_``, but for roundings.

    Args:
        vector: as in ``rotate_``.
        stream: of the signs.
        first: makes the vector, and the first of three passes over it: what
            rotation_cpu.rotate_neighbours does, the end of whose arguments it is given. So
            what is made is transformed before it leaves the processor.
    """
    from fullfed.sketch import cpu  # imports numba

    count, size = len(vector), block_size(len(vector))
    first(*cpu.neighbours(size, stream, before=None, after=2 * count))
    cpu.rotate_distant(vector, size)
    cpu.rotate_neighbours(vector, size, stream, before=count, after=0)
