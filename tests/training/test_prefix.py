"""Training from what a prefix made once is training the whole model, with the prefix away."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from fullfed.data.batches import IGNORED, Batch, collate
from fullfed.training.layers import find_layers
from fullfed.training.prefix import Prefix
from methods.tiny import same, samples, weights
from training.architectures import CAUSAL, make

BATCHES = [collate(samples(3, seed=1)), collate(samples(2, seed=2)), collate(samples(3, seed=1))]


def last_layers(model: PreTrainedModel, first: int) -> list[Tensor]:
    """The parameters of the layers from a number on, and of the final norm."""
    _, layers = find_layers(model)
    after = [p for name, p in model.named_parameters() if "norm" in name or "ln_f" in name]
    inside = {id(p) for layer in layers for p in layer.parameters()}
    own = [p for layer in list(layers)[first:] for p in layer.parameters()]
    return own + [p for p in after if id(p) not in inside]


def exact_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("name", CAUSAL)
def test_gradients_are_those_of_the_whole_model_in_float64(name: str, first: int) -> None:
    model = make(name).double()
    plain = copy.deepcopy(model)
    own, theirs = last_layers(model, first), last_layers(plain, first)
    before = weights(model)
    prefix = Prefix(model, own)
    assert len(prefix.layers) == first
    with prefix.kept(BATCHES, "float32", None) as outputs:
        assert all(p.numel() == 0 for p in prefix.waiting)
        for batch in BATCHES:
            with outputs.serving(batch):
                loss = exact_loss(model, batch)
            wanted = exact_loss(plain, batch)
            torch.testing.assert_close(loss, wanted, rtol=1e-13, atol=0)
            found = torch.autograd.grad(loss, own)
            for ours, other in zip(found, torch.autograd.grad(wanted, theirs), strict=True):
                torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-13)
    assert same(weights(model), before)


def test_each_sample_is_kept_once_without_padding() -> None:
    model = make("llama")
    prefix = Prefix(model, last_layers(model, 2))
    with prefix.kept(BATCHES, "float32", 1) as outputs:
        tokens = sum(int(batch.attention_mask.sum()) for batch in BATCHES[:2])
        assert outputs.nbytes == tokens * 8 * 4


def test_one_layer_of_the_prefix_is_there_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    prefix = Prefix(model, last_layers(model, 3))
    seen: list[list[int]] = []
    for layer in prefix.layers:
        forward = layer.forward

        def look(*a: object, forward=forward, **k: object) -> object:  # type: ignore[no-untyped-def]
            sizes = [sum(p.numel() for p in own.parameters()) for own in prefix.layers]
            seen.append([n for n, size in enumerate(sizes) if size])
            return forward(*a, **k)

        monkeypatch.setattr(layer, "forward", look)
    with prefix.kept(BATCHES[:1], "float32", None):
        pass
    assert seen == [[0], [1], [2]]


def test_what_is_needed_elsewhere_does_not_go_away() -> None:
    """GPT-2's head is its embedding; Llama's here is a matrix of its own."""
    tied, untied = make("gpt2"), make("llama")
    assert all(p is not tied.lm_head.weight for p in Prefix(tied, last_layers(tied, 2)).waiting)
    found = Prefix(untied, last_layers(untied, 2)).waiting
    assert any(p is untied.model.embed_tokens.weight for p in found)


def test_a_model_comes_back_whole_from_a_visit_that_fails() -> None:
    model = make("llama")
    before = weights(model)
    with (
        pytest.raises(ZeroDivisionError),
        Prefix(model, last_layers(model, 2)).kept(BATCHES, "float32", None),
    ):
        raise ZeroDivisionError
    assert same(weights(model), before)
