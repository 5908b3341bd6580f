"""A model's own division into layers, whatever it is called."""

from __future__ import annotations

from torch import nn


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The list of a model's transformer layers and its name, or None if there is none.

    It is the list of modules that holds the most parameters; lists inside of it (a layer's
    experts) hold fewer.
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=lambda found: _elements(found[1]), default=None)


def layer_names(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The names of each layer's parameters, in the model's order; empty if no layers are found.

    A parameter that layers share belongs to the first.
    """
    found = find_layers(model)
    if found is None or _elements(found[1]) == 0:
        return ()
    prefix, layers = found
    names = [name for name, _ in model.named_parameters()]
    # The dot matters: layers.1. is no beginning of layers.10.
    begins = [f"{prefix}.{number}." for number in range(len(layers))]
    own = (tuple(name for name in names if name.startswith(begin)) for begin in begins)
    return tuple(layer for layer in own if layer)


def _elements(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
