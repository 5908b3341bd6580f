"""Moved copies of parameters, made in the same memory again and again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Move = Callable[[Tensor, int], None]  # changes a row of elements, told the first one's number


class Memory:
    """Buffers that are taken, given back and taken again.

    The C library maps what is larger than 32 MiB anew each time, and the first touch of such
    pages takes longer than copying and moving a parameter. No more is held than was once taken
    at the same time.
    """

    def __init__(self) -> None:
        self._free: defaultdict[torch.device, list[Tensor]] = defaultdict(list)

    def take(self, elements: int, like: Tensor) -> Tensor:
        """Shape (elements,), of the dtype and device of ``like``; anything may be in it."""
        free, size = self._free[like.device], elements * like.element_size()
        fitting = [buffer for buffer in free if buffer.numel() >= size]
        if fitting:
            buffer = min(fitting, key=Tensor.numel)
            free[:] = [other for other in free if other is not buffer]
        else:
            free.clear()  # what has become too small makes room
            buffer = torch.empty(size, dtype=torch.uint8, device=like.device)
        return buffer[:size].view(like.dtype)

    def give(self, taken: Tensor) -> None:
        whole = torch.empty(0, dtype=torch.uint8, device=taken.device)
        self._free[taken.device].append(whole.set_(taken.untyped_storage()))


class Copies:
    """Copies of runs of elements, each moved once, known by the numbers of their first elements.

    Args:
        move: what all copies undergo.
    """

    def __init__(self, move: Move, memory: Memory) -> None:
        self._move, self._memory = move, memory
        self._copies: dict[int, Tensor] = {}

    def make(self, start: int, parameters: Sequence[Tensor]) -> Tensor:
        """A moved copy of the parameters' elements in one row, or the one there is."""
        if start not in self._copies:
            copy = self._memory.take(sum(p.numel() for p in parameters), parameters[0])
            torch.cat([p.reshape(-1) for p in parameters], out=copy)
            self._move(copy, start)
            self._copies[start] = copy
        return self._copies[start]

    def drop(self, start: int, output: Any) -> None:
        """Its memory may be used again, unless part of the output is in it."""
        copy = self._copies.pop(start)
        place = copy.untyped_storage().data_ptr()
        tensors = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        if all(tensor.untyped_storage().data_ptr() != place for tensor in tensors):
            self._memory.give(copy)

    def drop_all(self) -> None:
        """At the end, when nothing is left that could use them."""
        for start in list(self._copies):
            self.drop(start, None)
