"""Every way to save memory trains what plain training does, and lets go of what it promises to."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fullfed.config import LocalTable, MemoryTable
from fullfed.data.batches import Batch, collate
from fullfed.data.tokens import TokenizedExample
from fullfed.training.first_order import Steps, train
from fullfed.training.layers import find_layers, layer_names, training_only
from fullfed.training.loss import answer_loss
from fullfed.training.memory import InputCache, checkpointed, held, input_cache
from methods.tiny import adamw, same, samples, sgd, weights
from training.architectures import CAUSAL, make

ADAM = adamw(0.01)
PLAIN = MemoryTable()
LEAN = MemoryTable(optimizer_in_backward=True)


@pytest.fixture(params=CAUSAL)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def batches(epochs: int = 1) -> list[Batch]:
    return [collate(samples(3, seed)) for seed in range(3)] * epochs


def named(model: PreTrainedModel, number: int | None) -> dict[str, Tensor]:
    """The parameters of one layer, or all."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    names = parameters if number is None else layer_names(model)[number]
    return {n: p for n, p in parameters.items() if n in names}


def block(model: PreTrainedModel, number: int) -> list[Tensor]:
    return list(named(model, number).values())


def trained(
    name: str,
    local: LocalTable = ADAM,
    number: int | None = 1,
    epochs: int = 1,
    memory: MemoryTable = PLAIN,
) -> dict[str, Tensor]:
    model = make(name)
    train(model, named(model, number), batches(epochs), local, memory)
    return weights(model)


def close(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def test_what_is_outside_of_the_block_stays_bit_for_bit(name: str) -> None:
    model, before = make(name), weights(make(name))
    train(model, named(model, 1), batches(), ADAM, PLAIN)
    inside = set(layer_names(model)[1])
    after = weights(model)
    assert same({n: before[n] for n in before if n not in inside},
                {n: after[n] for n in after if n not in inside})  # fmt: skip
    assert any(not torch.equal(before[n], after[n]) for n in inside)


def test_layers_below_the_block_have_no_graph_and_nothing_outside_a_gradient(name: str) -> None:
    model = make(name)
    found = find_layers(model)
    graphs: dict[int, bool] = {}
    for n, layer in enumerate(found[1]):
        layer.register_forward_hook(
            lambda module, inputs, output, n=n: graphs.update({n: output.requires_grad})
        )
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    with training_only(model, block(model, 1)):
        answer_loss(model, batches()[0]).backward()
    assert graphs == {0: False, 1: True, 2: True}
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == set(layer_names(model)[1])
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("number", [None, 1])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_stepping_in_the_backward_pass_is_stepping_after_it(
    name: str, optimizer: Any, number: int | None, clip: float | None
) -> None:
    """To the last bit, if torch uses the same kernels."""
    local = sgd(0.01, weight_decay=0.1, clip=clip, optimizer=optimizer)
    model = make(name)
    parameters = list(named(model, number).values())
    torchs = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    theirs = torchs(parameters, lr=0.01, weight_decay=0.1, fused=True)
    for batch in batches():
        answer_loss(model, batch).backward()
        for p in parameters if clip else []:
            torch.nn.utils.clip_grad_norm_([p], clip)
        theirs.step()
        model.zero_grad()
    assert same(trained(name, local, number, memory=LEAN), weights(model))


def test_clipping_each_tensor_is_torchs_clipping_of_it_alone() -> None:
    model, other = make("llama"), make("llama")
    local = sgd(1.0, clip=0.01, clip_by="tensor")
    train(model, named(model, None), batches()[:1], local, PLAIN)
    answer_loss(other, batches()[0]).backward()
    for p in other.parameters():
        norm = torch.nn.utils.clip_grad_norm_([p], 0.01)
        assert norm > 0.01
        p.data.sub_(p.grad)
    close(weights(model), weights(other), rtol=1e-5, atol=1e-7)


def test_one_gradient_lives_at_a_time() -> None:
    model = make("llama")
    parameters = block(model, 1)
    steps = Steps(named(model, 1), sgd(0.1), set(), one_by_one=True, state={}, exact={})
    alive: list[int] = []
    gradients: list[weakref.ref[Tensor]] = []

    def note(parameter: Tensor) -> None:
        gradients.append(weakref.ref(parameter.grad))  # type: ignore[arg-type]
        alive.append(sum(g() is not None for g in gradients))

    for p in parameters:  # before those of the steps
        p.register_post_accumulate_grad_hook(note)
    with training_only(model, parameters), steps:
        answer_loss(model, batches()[0]).backward()
    assert alive == [1] * len(parameters)


def test_the_steps_of_a_16_bit_model_add_up() -> None:
    """Each is less than the weights can show; all of them together are not."""
    model = make("llama").bfloat16()
    parameters = block(model, 1)
    start = [p.detach().clone() for p in parameters]
    train(model, named(model, 1), batches(epochs=100), adamw(1e-5), PLAIN)
    moved = torch.cat([(p - s).abs().reshape(-1) for p, s in zip(parameters, start, strict=True)])
    assert float((moved > 0).float().mean()) > 0.5


def test_checkpointed_layers_train_the_same_to_the_last_bit(name: str) -> None:
    lean = MemoryTable(checkpoint_activations=True)
    for number in (1, None):
        assert same(trained(name, number=number, memory=lean), trained(name, number=number))


def test_checkpointed_layers_keep_their_inputs_only(name: str) -> None:
    def kept(memory: MemoryTable) -> int:
        """Bytes the graph holds at the end of the forward pass, weights apart."""
        model = make(name)
        sizes: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            training_only(model, block(model, 0)),
            checkpointed(model) if memory.checkpoint_activations else nullcontext(),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        ):
            answer_loss(model, batches()[0])
        return sum(sizes.values())

    assert kept(MemoryTable(checkpoint_activations=True)) < kept(MemoryTable()) / 2


def count_layer_calls(model: nn.Module) -> list[int]:
    """How often each layer has computed anything so far, from now on."""
    found = find_layers(model)
    calls = [0] * len(found[1])
    for n, layer in enumerate(found[1]):
        for module in layer.modules():
            if isinstance(module, nn.LayerNorm) or "Norm" in type(module).__name__:
                module.register_forward_hook(lambda *_, n=n: calls.__setitem__(n, calls[n] + 1))
                break
    return calls


def test_with_a_cache_the_layers_below_compute_each_sample_once(name: str) -> None:
    model = make(name)
    calls = count_layer_calls(model)
    train(model, named(model, 2), batches(epochs=4), ADAM, MemoryTable(cache_inputs=1 << 20))
    assert calls == [3, 3, 12]


def test_a_cache_changes_no_more_than_rounding(name: str) -> None:
    """Other batches than those that filled it, padded otherwise."""
    again = [collate(samples(3, s)[i : i + 1]) for s in range(3) for i in range(3)]
    results = []
    for limit in (0, 1 << 20):
        model, memory = make(name), MemoryTable(cache_inputs=limit)
        train(model, named(model, 1), batches() + again + batches(), sgd(0.1), memory)
        results.append(weights(model))
    close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 2])
def test_streams_beside_samples_are_cached_by_sample(axis: int) -> None:
    """Hidden states of four dimensions: Gemma 3n has its streams before, DeepSeek V4 behind."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return hidden * 2 + 1

    below, last = Layer(), Layer()
    cache = InputCache([below, last], 1, 1 << 20)

    def run(batch: Batch) -> torch.Tensor:
        ids = batch.input_ids
        streams = torch.stack([ids, -ids, ids**2], dim=axis)
        with cache.serving(batch):
            return last(below(streams[..., None].float() + torch.arange(5))).movedim(axis, 0)

    long, short = (collate(samples(2, seed)) for seed in range(2))
    first = run(long), run(short)
    assert below.calls == 2
    mixed = collate([*samples(2, 1), *samples(2, 0)])
    served = run(mixed)
    assert below.calls == 2
    assert served.shape == (3, 4, mixed.input_ids.shape[1], 5)
    for expected, found, batch in zip(
        first, (served[:, 2:], served[:, :2]), (long, short), strict=True
    ):
        for row, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
            assert torch.equal(found[:, row, :length], expected[:, row, :length])


def test_where_samples_cannot_be_told_from_streams_nothing_is_cached() -> None:
    below, last = nn.Identity(), nn.Identity()
    cache = InputCache([below, last], 1, 1 << 20)
    batch = collate([TokenizedExample.pair(np.arange(2, dtype=np.int32), 1) for _ in range(2)])
    hidden = torch.zeros(2, 2, 2, 5)  # two streams, two samples, two tokens
    for _ in range(2):
        with cache.serving(batch):
            last(below(hidden))
    assert not cache._states


def test_a_cache_that_gets_too_large_is_given_up() -> None:
    model = make("llama")
    calls = count_layer_calls(model)
    train(model, named(model, 2), batches(epochs=2), ADAM, MemoryTable(cache_inputs=500))
    assert calls == [6, 6, 6]
    assert same(weights(model), trained("llama", number=2, epochs=2))


def test_there_is_nothing_to_cache_where_the_graph_begins_at_the_bottom() -> None:
    model = make("llama")
    assert input_cache(model, block(model, 0), 1000) is None
    assert input_cache(model, [*block(model, 1), model.model.norm.weight], 1000) is None
    assert input_cache(model, block(model, 1), 0) is None
    assert input_cache(model, block(model, 1), 1000) is not None


@pytest.mark.parametrize(("frozen", "tolerance"), [("int8", 0.02), ("int4", 0.3)])
def test_frozen_weights_in_few_bits_give_nearly_the_same_loss_and_gradients(
    name: str, frozen: Any, tolerance: float
) -> None:
    losses, gradients = [], []
    for how in ("exact", frozen):
        model = make(name)
        parameters = block(model, 1)
        with held(model, parameters, how):
            loss = answer_loss(model, batches()[0])
            loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.reshape(-1) for p in parameters]))  # type: ignore[union-attr]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert cosine > 1 - tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frozen", ["int8", "int4"])
def test_frozen_weights_come_back_bit_for_bit(name: str, frozen: Any, dtype: torch.dtype) -> None:
    model = make(name).to(dtype)
    before = weights(model)
    parameters = block(model, 1)
    with held(model, parameters, frozen):
        answer_loss(model, batches()[0])
        held_bytes = sum(p.nbytes for p in model.parameters())
    assert same(weights(model), before)
    assert held_bytes < sum(p.nbytes for p in model.parameters())


def test_frozen_weights_come_back_after_a_failure() -> None:
    model = make("llama")
    before = weights(model)
    with pytest.raises(RuntimeError, match="out of memory"), held(
        model, block(model, 0), "int8"
    ):  # fmt: skip
        raise RuntimeError("out of memory")
    assert same(weights(model), before)
    assert answer_loss(model, batches()[0]).isfinite()
