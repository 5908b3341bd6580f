"""What a client can trade for memory in a visit. docs/memory.md has the prices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fullfed.training.frozen import training_only
from fullfed.training.inputs import InputCache
from fullfed.training.layers import find_layers
from fullfed.training.quantised import quantised


@dataclass(frozen=True)
class Memory:
    """Ways to need less of it, or (the cache) less time for more of it.

    Attributes:
        optimizer_in_backward: each tensor steps as soon as its gradient is there, so that one
            gradient lives at a time. Its norm can only be clipped by itself.
        checkpoint_activations: layers keep their inputs and compute again in the backward pass.
        frozen: what is not trained is held "exact", or in "int8" or "int4" while a visit lasts.
        cache_inputs: bytes for what comes into the first trained layer, so that later epochs do
            not compute the layers before it.
    """

    optimizer_in_backward: bool = False
    checkpoint_activations: bool = False
    frozen: Literal["exact", "int8", "int4"] = "exact"
    cache_inputs: int = 0


PLAIN = Memory()


@contextmanager
def held(model: nn.Module, parameters: Sequence[Tensor], memory: Memory) -> Iterator[None]:
    """Inside, the model is as a visit that trains ``parameters`` holds it."""
    with training_only(model, parameters):
        if memory.frozen == "exact":
            yield
        else:
            with quantised(model, parameters, 8 if memory.frozen == "int8" else 4):
                yield


def input_cache(model: nn.Module, parameters: Sequence[Tensor], limit: int) -> InputCache | None:
    """A cache before the first trained layer; None if nothing frozen comes before it."""
    found = find_layers(model)
    if found is None or limit == 0:
        return None
    layers = found[1]
    trained = {id(p) for p in parameters}
    if trained - {id(p) for p in layers.parameters()}:
        return None
    first = next(
        n for n, own in enumerate(layers) if any(id(p) in trained for p in own.parameters())
    )
    return InputCache(list(layers), first, limit) if first else None
