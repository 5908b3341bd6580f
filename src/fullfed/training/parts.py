"""A model in parts that compute with changed copies of their parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fullfed.training.copies import Copies, Memory, Move


@dataclass(frozen=True)
class Place:
    """Where a module keeps a parameter.

    Attributes:
        table: torch's own of the module's parameters. Assigning to the module would want a
            Parameter and take longer.
        name: in that table.
        parameter: what is there when nobody has put anything else there.
        nothing: NaN in the parameter's shape, in the memory of one number.
        start: the number of the parameter's first element.
    """

    table: MutableMapping[str, Any]
    name: str
    parameter: Tensor
    nothing: Tensor
    start: int

    def put(self, tensor: Tensor) -> None:
        self.table[self.name] = tensor


@dataclass(frozen=True)
class Row:
    """Places whose parameters' elements follow one another, of one dtype and device.

    Attributes:
        places: in the order of their elements; a parameter tied within the part has several.
        parameters: by the numbers of their first elements, each once.
        tied: the one parameter is in other parts as well.
    """

    places: tuple[Place, ...]
    parameters: Mapping[int, Tensor]
    tied: bool

    @property
    def start(self) -> int:
        return self.places[0].start

    def put(self, copy: Tensor) -> None:
        """Put a copy of the elements, (their number,), into the places."""
        pieces = copy.split_with_sizes([p.numel() for p in self.parameters.values()])
        copies = dict(zip(self.parameters, pieces, strict=True))
        for place in self.places:
            place.put(copies[place.start].view(place.parameter.shape))


@dataclass(frozen=True)
class Part:
    """A module, and the places in it."""

    module: nn.Module
    rows: tuple[Row, ...]

    @property
    def places(self) -> Iterator[Place]:
        return chain.from_iterable(row.places for row in self.rows)

    def hide(self) -> None:
        """Put NaN into the places."""
        for place in self.places:
            place.put(place.nothing)

    def watch(self, copies: Copies) -> list[RemovableHandle]:
        """Hooks that put in copies before the module computes and hide after."""

        def before(module: nn.Module, inputs: Any) -> None:
            for row in self.rows:
                row.put(copies.make(row.start, list(row.parameters.values())))

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            self.hide()
            for row in self.rows:
                if not row.tied:
                    copies.drop(row.start, output)

        return [
            self.module.register_forward_pre_hook(before),
            self.module.register_forward_hook(after),
        ]

    def restore(self) -> None:
        for place in self.places:
            place.put(place.parameter)


def parts_of(model: nn.Module, parameters: Sequence[Tensor]) -> list[Part]:
    """The elements of the model's module lists, layers as a rule; else each module for itself.

    Only places of ``parameters`` are in it, whose order numbers their elements.
    """
    ends = accumulate((p.numel() for p in parameters), initial=0)
    starts = {id(p): start for p, start in zip(parameters, ends, strict=False)}
    found = []
    for module, inner in _modules(model):
        places = [
            Place(
                owner._parameters, name, p, p.new_full((), torch.nan).expand(p.shape), starts[id(p)]
            )
            for owner in inner
            for name, p in owner.named_parameters(recurse=False)
            if id(p) in starts
        ]
        if places:
            found.append((module, sorted(places, key=lambda place: place.start)))
    counts = Counter(start for _, places in found for start in {place.start for place in places})
    tied = {start for start, count in counts.items() if count > 1}
    return [Part(module, _rows(places, tied)) for module, places in found]


def _modules(module: nn.Module) -> Iterator[tuple[nn.Module, Iterable[nn.Module]]]:
    """Modules to replace parameters of, each with the modules that hold them."""
    yield module, [module]
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from ((element, element.modules()) for element in child)
        else:
            yield from _modules(child)


def _rows(places: Sequence[Place], tied: set[int]) -> tuple[Row, ...]:
    groups: list[list[Place]] = []
    for place in places:
        if groups and _follows(place, groups[-1][-1], tied):
            groups[-1].append(place)
        else:
            groups.append([place])
    return tuple(
        Row(
            tuple(group),
            {place.start: place.parameter.detach() for place in group},
            group[0].start in tied,
        )
        for group in groups
    )


def _follows(place: Place, last: Place, tied: set[int]) -> bool:
    new, old = place.parameter, last.parameter
    if place.start == last.start:
        return True
    alike = (new.dtype, new.device) == (old.dtype, old.device)
    return (
        alike and place.start == last.start + old.numel() and not {place.start, last.start} & tied
    )


@contextmanager
def moved(parts: Sequence[Part], move: Move, memory: Memory) -> Iterator[None]:
    """Let each part compute with copies of its parameters that ``move`` has changed.

    A copy lasts for one call of the part's module, that of a parameter tied to another part's to
    the end. Between calls a part's parameters are NaN: what reads them elsewhere does not go
    unnoticed. Copies are made in ``memory``, which is to serve many models moved in turn.
    """

    copies = Copies(move, memory)
    hooks = []
    for part in parts:
        hooks += part.watch(copies)
    try:
        for part in parts:
            part.hide()
        yield
        copies.drop_all()
    finally:
        for hook in hooks:
            hook.remove()
        for part in parts:
            part.restore()
