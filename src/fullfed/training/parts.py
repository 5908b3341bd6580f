"""A model in parts that compute with changed copies of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Move = Callable[[Tensor, int], None]  # changes a row of elements, told the first one's number


@dataclass(frozen=True)
class Place:
    """Where a module keeps a parameter, whose elements are numbered from ``start``."""

    module: nn.Module
    name: str
    parameter: Tensor
    start: int

    def put(self, tensor: Tensor) -> None:
        # Into torch's own table: assignment to the module would want a Parameter.
        self.module._parameters[self.name] = tensor  # type: ignore[assignment]

    def follows(self, other: Place) -> bool:
        """Whether both can be in one row: elements without a gap, of one dtype and device."""
        alike = (self.parameter.dtype, self.parameter.device) == (
            other.parameter.dtype,
            other.parameter.device,
        )
        return alike and self.start in (other.start, other.start + other.parameter.numel())


@dataclass(frozen=True)
class Part:
    """A module, and the places in it in rows of elements without gaps."""

    module: nn.Module
    rows: tuple[tuple[Place, ...], ...]

    def move(self, move: Move) -> None:
        """Put moved copies into the places."""
        for places in self.rows:
            first = places[0].start
            parameters = {place.start: place.parameter for place in places}
            row = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
            move(row, first)
            for place in places:
                begin, size = place.start - first, place.parameter.numel()
                place.put(row[begin : begin + size].view(place.parameter.shape))

    def hide(self) -> None:
        """Put NaN into the places."""
        for place in chain(*self.rows):
            nan = torch.full((), torch.nan, dtype=place.parameter.dtype)
            place.put(nan.to(place.parameter.device).expand(place.parameter.shape))

    def watch(self, move: Move) -> list[RemovableHandle]:
        """Hooks that move before the module computes and hide after."""

        def before(module: nn.Module, inputs: Any) -> None:
            self.move(move)

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            self.hide()

        return [
            self.module.register_forward_pre_hook(before),
            self.module.register_forward_hook(after),
        ]

    def restore(self) -> None:
        for place in chain(*self.rows):
            place.put(place.parameter)


def parts_of(model: nn.Module, parameters: Sequence[Tensor]) -> list[Part]:
    """The elements of the model's module lists, layers as a rule; else each module for itself.

    Only places of ``parameters`` are in it, whose order numbers their elements.
    """
    ends = accumulate((p.numel() for p in parameters), initial=0)
    starts = {id(p): start for p, start in zip(parameters, ends, strict=False)}
    parts = []
    for module, inner in _modules(model):
        places = [
            Place(owner, name, parameter, starts[id(parameter)])
            for owner in inner
            for name, parameter in owner.named_parameters(recurse=False)
            if id(parameter) in starts
        ]
        if places:
            parts.append(Part(module, _rows(sorted(places, key=lambda place: place.start))))
    return parts


def _modules(module: nn.Module) -> Iterator[tuple[nn.Module, Iterable[nn.Module]]]:
    """Modules to replace parameters of, each with the modules that hold them."""
    yield module, [module]
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from ((element, element.modules()) for element in child)
        else:
            yield from _modules(child)


def _rows(places: Sequence[Place]) -> tuple[tuple[Place, ...], ...]:
    rows: list[list[Place]] = []
    for place in places:
        if rows and place.follows(rows[-1][-1]):
            rows[-1].append(place)
        else:
            rows.append([place])
    return tuple(tuple(row) for row in rows)


@contextmanager
def moved(parts: Sequence[Part], move: Move) -> Iterator[None]:
    """Let each part compute with copies of its parameters that ``move`` has changed.

    A copy lasts for one call of the part's module. Between calls its parameters are NaN: what
    reads them elsewhere does not go unnoticed.
    """

    hooks = []
    for part in parts:
        hooks += part.watch(move)
    try:
        for part in parts:
            part.hide()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part in parts:
            part.restore()
