"""A model made of parts is the one the parts are from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fullfed.data.batches import collate
from fullfed.training.layers import find_layers, layer_names
from fullfed.training.loss import answer_loss
from fullfed.training.memory import held
from fullfed.training.quantised import Quantised, assemble, blank, quantisable
from methods.tiny import samples
from training.architectures import CAUSAL, make


def exact(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", CAUSAL)
def test_a_layer_that_is_left_out_is_as_if_it_were_not_there(name: str) -> None:
    whole, shorter = make(name), make(name)
    left_out = layer_names(whole)[1]
    model = blank(type(whole), whole.config)
    parts = {name: tensor for name, tensor in exact(whole).items() if name not in left_out}
    assemble(model, parts, {}, dict(whole.named_buffers()))
    found = find_layers(shorter)
    del found[1][1]
    for place in ("num_hidden_layers", "n_layer"):
        if hasattr(shorter.config, place):
            setattr(shorter.config, place, 2)
    batch = collate(samples(3))
    ours = answer_loss(model, batch)
    assert torch.equal(ours, answer_loss(shorter, batch))
    assert not torch.equal(ours, answer_loss(whole, batch))
    elements = sum(p.numel() for p in model.parameters())
    assert elements == sum(p.numel() for p in shorter.parameters())


@pytest.mark.parametrize("name", CAUSAL)
def test_packed_matrices_compute_as_they_do_in_place_of_exact_ones(name: str) -> None:
    whole = make(name)
    names = {p: n for n, p in whole.named_parameters()}
    packed = {names[p]: Quantised.of(p, 8) for p in quantisable(whole, [])}
    model = blank(type(whole), whole.config)
    rest = {n: t for n, t in exact(whole).items() if n not in packed}
    assemble(model, rest, packed, dict(whole.named_buffers()))
    batch = collate(samples(3))
    with held(whole, [], "int8"):
        assert torch.equal(answer_loss(model, batch), answer_loss(whole, batch))


class Allocations(TorchDispatchMode):
    """Bytes of each piece of memory that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        old = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if _real(t)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if _real(tensor) and tensor.untyped_storage().data_ptr() not in old:
                self.made.append(tensor.untyped_storage().nbytes())
        return result


def _real(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.device.type != "meta"


@pytest.mark.parametrize("name", CAUSAL)
def test_nothing_is_copied_or_made_beside_what_there_is(name: str) -> None:
    whole = make(name)
    left_out = layer_names(whole)[1]
    parts = {n: t for n, t in exact(whole).items() if n not in left_out}
    with Allocations() as allocations:
        model = blank(type(whole), whole.config)
        assemble(model, parts, {}, dict(whole.named_buffers()))
    assert sum(allocations.made) == 0
    there = {n: p.untyped_storage().data_ptr() for n, p in model.named_parameters() if p.numel()}
    assert there == {n: t.untyped_storage().data_ptr() for n, t in parts.items()}
    with Allocations() as allocations:
        torch.ones(3)
    assert allocations.made == [12]
