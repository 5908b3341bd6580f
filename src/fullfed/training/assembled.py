"""A model put together from what there is of it: packed matrices, and layers that are not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from fullfed.training.layers import find_layers
from fullfed.training.quantised import Quantised, forward_with


def blank(kind: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A model in evaluation mode whose tensors have names and shapes, and take no memory."""
    with torch.device("meta"):
        model = kind(config)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def assemble(
    model: PreTrainedModel,
    exact: Mapping[str, Tensor],
    packed: Mapping[str, Quantised],
    buffers: Mapping[str, Tensor],
) -> None:
    """Give a blank model what there is of it, in place. Nothing is copied or unpacked.

    What comes into a layer of which there is nothing comes out of it unchanged: transformer
    layers add to what comes in, so the others still make sense of it.

    Args:
        exact: parameters, by name; at least one.
        packed: matrices that ``quantisable`` lists, by name.
        buffers: all of the model's, by name.
    """
    names = {p: name for name, p in model.named_parameters()}
    nothing = next(iter(exact.values())).new_empty(0)
    found = {name: nn.Parameter(exact.get(name, nothing), False) for name in names.values()}
    users: list[tuple[nn.Module, Quantised]] = []
    for module in model.modules():
        for place, parameter in list(module.named_parameters(recurse=False)):
            name = names[parameter]
            setattr(module, place, found[name])
            if name in packed:
                users.append((module, packed[name]))
    for module, matrix in users:  # whose biases are there by now
        module.forward = forward_with(matrix, module)
    for name, buffer in buffers.items():
        owner, _, place = name.rpartition(".")
        setattr(model.get_submodule(owner), place, buffer)
    _pass_over_layers(model, exact.keys() | packed.keys())


def _pass_over_layers(model: nn.Module, there: set[str]) -> None:
    prefix, layers = find_layers(model) or ("", nn.ModuleList())
    for number, layer in enumerate(layers):
        if there.isdisjoint(name for name, _ in layer.named_parameters(f"{prefix}.{number}")):
            layer.forward = _pass


def _pass(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden
