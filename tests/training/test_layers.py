"""Layers are found from a model's own structure, whatever they are called."""

from __future__ import annotations

import pytest
from torch import nn

from fullfed.training.layers import find_layers, layer_names
from training.architectures import CAUSAL, ENCODERS, LAYERS, make


@pytest.mark.parametrize("name", [*CAUSAL, *ENCODERS])
def test_every_parameter_is_in_one_layer_or_outside_of_them_all(name: str) -> None:
    model = make(name)
    layers = layer_names(model)
    inside = [n for layer in layers for n in layer]
    assert len(layers) == LAYERS
    assert len(set(inside)) == len(inside)
    kinds = [[n.replace(f".{i}.", ".") for n in layer] for i, layer in enumerate(layers)]
    assert kinds[0] == kinds[1] == kinds[2]
    outside = [n for n, _ in model.named_parameters() if n not in set(inside)]
    assert any("emb" in n or "wte" in n for n in outside)
    assert not any("attn" in n or "attention" in n or "mlp" in n for n in outside)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_classification_head_is_no_layer(name: str) -> None:
    inside = {n for layer in layer_names(make(name)) for n in layer}
    head = [n for n, _ in make(name).named_parameters() if n.startswith("classifier.")]
    assert head
    assert not inside & set(head)


def test_experts_inside_of_layers_are_not_taken_for_layers() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))

    model = nn.Module()
    model.blocks = nn.ModuleList([Layer(), Layer()])
    model.head = nn.Linear(4, 100)
    found = find_layers(model)
    assert (found[0], len(found[1])) == ("blocks", 2)


def test_the_eleventh_layer_is_not_part_of_the_second() -> None:
    model = nn.Module()
    model.h = nn.ModuleList(nn.Linear(1, 1) for _ in range(12))
    assert layer_names(model)[1] == ("h.1.weight", "h.1.bias")


def test_a_model_without_a_list_of_layers_has_none() -> None:
    assert layer_names(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == ()
    assert not len(find_layers(nn.Linear(2, 2))[1])
