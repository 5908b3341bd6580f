"""Tensors by name that are not all in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from torch import Tensor

from fullfed.payloads import is_large
from fullfed.training.offload import Offload

Item = TypeVar("Item")


class Computed(Mapping[str, Item]):
    """Items, tensors as a rule, of which each is made when it is looked at, and not kept.

    Args:
        names: in their order.
        make: the item of a name, the same each time.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], Item]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> Item:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def put_away(tensors: Iterable[tuple[str, Tensor]], nbytes: int) -> Mapping[str, Tensor]:
    """Tensors for a message. Those of a large one wait where ``Offload`` keeps them: a CPU's in a
    file, an accelerator's in the host's memory.

    Args:
        nbytes: of all of them.

    Raises:
        UserError: there is no room for them.
    """
    if not is_large(nbytes):
        return dict(tensors)
    store = Offload()
    fetches = {name: store.put(tensor) for name, tensor in tensors}
    return Computed(fetches, lambda name: fetches[name]())
