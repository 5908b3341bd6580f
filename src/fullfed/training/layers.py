"""Finds a model's layers; context managers that freeze or replace parts of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of a model's transformer layers; an empty one if there is none.

    It is the list of modules that holds the most parameters; lists inside of it (a layer's
    experts) hold fewer.
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    return max(
        lists,
        key=lambda found: sum(p.numel() for p in found[1].parameters()),
        default=("", nn.ModuleList()),
    )


def layer_names(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The names of each layer's parameters, in the model's order; empty if no layers are found.

    A parameter that layers share belongs to the first.
    """
    prefix, layers = find_layers(model)
    names = [name for name, _ in model.named_parameters()]
    # The dot matters: layers.1. is no beginning of layers.10.
    begins = [f"{prefix}.{number}." for number in range(len(layers))]
    own = (tuple(name for name in names if name.startswith(begin)) for begin in begins)
    return tuple(layer for layer in own if layer)


def find_reader(model: nn.Module) -> nn.Module:
    """What calls a model's layers, one after another; the model's head may go past its
    ``base_model`` to it."""
    return model.get_submodule(find_layers(model)[0].rpartition(".")[0])


@contextmanager
def training_only(model: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Inside, exactly ``parameters`` require gradients; afterwards what did before does again."""
    trained = {id(p) for p in parameters}
    found = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in found:
        parameter.requires_grad_(id(parameter) in trained)
    try:
        yield
    finally:
        for parameter, required in found:
            parameter.requires_grad_(required)


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, calling the module calls ``forward``; hooks of the module stay."""
    own = vars(module).get("forward")  # what else has been put in front of the class's
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def pass_on(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    """What a layer computes that is left out: what comes in comes out."""
    return hidden
