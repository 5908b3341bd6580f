"""Training a part of a model: everything else has no gradient, and layers before it no graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


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
