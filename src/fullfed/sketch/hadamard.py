"""A random rotation of a vector, after which its entries look like draws of one normal law."""

from __future__ import annotations

from torch import Tensor

from fullfed.sketch.generator import Stream

_LARGEST = 1024  # of C: what is spread over a million entries is spread enough
_ACROSS = (False, True, False)  # neighbours, distant entries, neighbours; the same backwards


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

    for number, across in enumerate(_ACROSS):
        cpu.flip(vector, stream, number * len(vector))
        cpu.transform(_blocks(vector, across), across)


def rotate_back_(vector: Tensor, stream: Stream) -> None:
    """The inverse of ``rotate_``, but for roundings."""
    from fullfed.sketch import cpu  # imports numba

    for number, across in reversed(list(enumerate(_ACROSS))):
        cpu.transform(_blocks(vector, across), across)
        cpu.flip(vector, stream, number * len(vector))


def _blocks(vector: Tensor, across: bool) -> Tensor:
    """Rows of C neighbours, or columns of C entries at equal distances."""
    size = block_size(len(vector))
    return vector.view(size, -1) if across else vector.view(-1, size)
