"""SLoRA: drawn entries train, then the factors that come closest to them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fullfed.config import MemoryTable
from fullfed.data.batches import training_batches
from fullfed.errors import UserError
from fullfed.federation.messages import encode
from fullfed.methods import slora
from fullfed.methods.scopes import A, B, W, adapted, initial_a
from fullfed.methods.slora import (
    VALUES,
    SLoRAOptions,
    SparseLayer,
    drawn_entries,
    low_rank,
)
from fullfed.sketch import Purpose, Stream
from fullfed.training.loss import answer_loss
from methods.lora import SEED, reports, three_clients
from methods.test_adapters import logits, tiny_gpt2
from methods.tiny import Federation, adamw, method_options, same, setting, tiny_model, weights

TARGETS = ("q_proj", "v_proj")
OPTIONS = SLoRAOptions(rank=2, alpha=3.0, density=0.3, sparse_rounds=2, targets=TARGETS)
GPT2 = replace(OPTIONS, targets=("c_attn", "mlp.c_proj"))


def federate(
    options: SLoRAOptions = OPTIONS, model: PreTrainedModel | None = None, **changes: Any
) -> Federation:
    model = tiny_model() if model is None else model
    scope = slora.scope(SEED, options)
    scope.attach(model)
    shapes = {name: p.shape for name, p in scope.trained(model).items()}
    known: dict[str, Any] = {"local": adamw(0.03), "work": {"steps": 5}, "shapes": shapes}
    made = setting(model, clients=3, **known | changes)
    return Federation(model, slora.build(made, options), three_clients())


def sparse(model: PreTrainedModel) -> dict[str, Tensor]:
    """Of every target S, float64, (out, in)."""
    found: dict[str, Tensor] = {}
    for number, target in enumerate(adapted(weights(model))):
        matrix = model.get_parameter(target + W).detach()
        flat = torch.zeros(matrix.numel(), dtype=torch.float64)
        entries = drawn_entries(SEED, number, matrix.numel(), OPTIONS.density)
        values = model.get_parameter(target + VALUES).detach().double()
        for entry, value in zip(entries.tolist(), values, strict=True):
            flat[entry] = value
        transposed = "c_" in target
        found[target] = flat.view(matrix.shape).T if transposed else flat.view(matrix.shape)
    return found


@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("elements", [7, 1000, 4096])
def test_entries_are_different_in_order_and_as_many_as_asked(elements: int, density: float) -> None:
    entries = drawn_entries(SEED, 0, elements, density)
    assert len(entries) == max(round(density * elements), 1)
    assert np.all(np.diff(entries) > 0)
    assert 0 <= entries[0] <= entries[-1] < elements
    if density == 1.0:
        assert np.array_equal(entries, np.arange(elements))


def test_every_entry_is_drawn_as_often() -> None:
    counts = np.zeros(50)
    for seed in range(4000):
        counts[drawn_entries(seed, 0, 50, 0.14)] += 1  # seven runs of seven or eight
    assert np.all(np.abs(counts / 4000 - 0.14) < 0.03)
    assert not np.array_equal(drawn_entries(1, 0, 99, 0.2), drawn_entries(1, 1, 99, 0.2))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_sparse_layer_is_autograds_sum_of_two_matrices(transposed: bool) -> None:
    torch.manual_seed(0)
    layer: nn.Linear | Conv1D = Conv1D(5, 3) if transposed else nn.Linear(3, 5)  # type: ignore[no-untyped-call]
    entries = torch.tensor([0, 4, 9])
    made = SparseLayer(layer.double(), entries)
    made.values = nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    values = made.values.detach().clone().requires_grad_()
    flat = torch.zeros(15, dtype=torch.float64).index_add(0, entries, values)
    stored = layer.weight.detach() + flat.view(layer.weight.shape)
    wanted = linear(x, stored.T if transposed else stored, layer.bias)
    torch.testing.assert_close(made(x), wanted)
    towards = torch.randn_like(wanted)
    ours = torch.autograd.grad((made(x) * towards).sum(), [x, made.values])
    theirs = torch.autograd.grad((wanted * towards).sum(), [x, values])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(made.plain()(x), wanted)


def test_only_drawn_entries_train_and_as_full_training_would_train_them() -> None:
    """One client, AdamW by hand on whole matrices whose other gradients are dropped."""
    federation = federate()
    alone = tiny_model()
    data = three_clients()
    masks = {
        target: torch.zeros_like(alone.get_parameter(target + ".weight")).flatten()
        for target in adapted(weights(federation.model))
    }
    for number, (target, mask) in enumerate(masks.items()):
        mask[drawn_entries(SEED, number, mask.numel(), OPTIONS.density)] = 1
        masks[target] = mask.view(alone.get_parameter(target + ".weight").shape)
    sent = reports(federation)[0]
    own = {target: alone.get_parameter(target + ".weight") for target in masks}
    before = {target: p.detach().clone() for target, p in own.items()}
    optimizer = torch.optim.AdamW(own.values(), lr=0.03, weight_decay=0.0)
    batch_size = federation.method.setting.local.batch_size
    for batch in training_batches(data[0], batch_size, 5, Stream(SEED, Purpose.BATCHES, 0, 0)):
        alone.zero_grad()
        answer_loss(alone, batch).backward()
        for target, p in own.items():
            assert p.grad is not None
            p.grad *= masks[target]
        optimizer.step()
    assert sent.tensors.keys() == {target + VALUES for target in masks}
    for target, p in own.items():
        moved = (p.detach() - before[target])[masks[target].bool()]
        assert moved.abs().min() > 1e-4
        torch.testing.assert_close(sent.tensors[target + VALUES], moved, rtol=0, atol=1e-6)


def test_factors_are_the_best_of_their_rank() -> None:
    change = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 5))).float()
    drawn = torch.ones(3, 5)
    b, a = low_rank(change, drawn, 1.5)
    u, s, v = torch.linalg.svd(change.double(), full_matrices=False)
    best = u[:, :3] @ torch.diag(s[:3]) @ v[:3]
    torch.testing.assert_close(1.5 * b.double() @ a.double(), best, rtol=0, atol=1e-5)
    torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1))
    thin, kept = low_rank(change[:, :1] @ change[:1, :], drawn, 1.5)
    assert torch.equal(kept[1:], drawn[1:])
    assert thin[:, 1:].count_nonzero() == 0
    none, all_drawn = low_rank(torch.zeros(7, 5), drawn, 1.5)
    assert torch.equal(all_drawn, drawn)
    assert none.count_nonzero() == 0


@pytest.mark.parametrize(
    ("make", "options"), [(tiny_model, OPTIONS), (tiny_gpt2, GPT2)], ids=["linear", "conv1d"]
)
def test_the_switch_round_by_round(make: Any, options: SLoRAOptions) -> None:
    federation = federate(options, make())
    model = federation.model
    base = {target: model.get_parameter(target + W).clone() for target in adapted(weights(model))}
    federation.round()
    middle = sparse(model)
    assert all(s.abs().max() > 1e-4 for s in middle.values())
    for number, target in enumerate(base):
        a = model.get_parameter(target + A)
        assert torch.equal(a, initial_a(SEED, 0, number, a.shape))
        assert model.get_parameter(target + B).count_nonzero() == 0
    sent = reports(federation)
    means = {
        name: sum((n / 14 * r.tensors[name].double() for n, r in zip((9, 4, 1), sent, strict=True)))
        for name in sent[0].tensors
    }
    update = federation.round().update
    for target in base:
        with torch.no_grad():
            model.get_parameter(target + VALUES).copy_(means[target + VALUES])
    for target, change in sparse(model).items():
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        best = u[:, :2] @ torch.diag(s[:2]) @ v[:2]
        b, a = (model.get_parameter(target + f).detach().double() for f in (B, A))
        assert best.abs().max() > 1e-3
        torch.testing.assert_close(1.5 * b @ a, best, rtol=0, atol=1e-6)
        assert torch.equal(model.get_parameter(target + W), base[target])
    with torch.no_grad():
        for target in base:
            model.get_parameter(target + VALUES).zero_()
    assert {n.partition("/")[0] for n in update.tensors} == {"0", "factors"}
    sent = reports(federation)
    assert sent[0].tensors.keys() == {t + f for t in base for f in (A, B)}
    federation.round()
    for name in sent[0].tensors:
        mean = sum(n / 14 * r.tensors[name].double() for n, r in zip((9, 4, 1), sent, strict=True))
        found = model.get_parameter(name).detach().double()
        torch.testing.assert_close(found, mean, rtol=0, atol=1e-6)
    assert all(s.count_nonzero() == 0 for s in sparse(model).values())


def test_after_the_switch_a_visit_is_pefts_training() -> None:
    federation = federate()
    federation.round()
    federation.round()
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    alone = get_peft_model(tiny_model(), config).eval()
    theirs = {
        n.removeprefix("base_model.model."): p
        for n, p in alone.named_parameters()
        if p.requires_grad
    }
    with torch.no_grad():
        for name, p in theirs.items():
            p.copy_(federation.model.get_parameter(name))
    optimizer = torch.optim.AdamW(list(theirs.values()), lr=0.03, weight_decay=0.0)
    batch_size = federation.method.setting.local.batch_size
    stream = Stream(SEED, Purpose.BATCHES, 2, 0)
    for batch in training_batches(three_clients()[0], batch_size, 5, stream):
        optimizer.zero_grad()
        answer_loss(alone.get_base_model(), batch).backward()
        optimizer.step()
    sent = reports(federation)[0]
    for name, p in theirs.items():
        torch.testing.assert_close(sent.tensors[name], p.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "codec",
    [
        {"name": "sketch", "coordinates": 6, "seeds": "shared"},
        {"name": "topk", "count": 4},
        {"name": "dense", "precision": "int8", "error_feedback": True},
    ],
    ids=lambda codec: codec["name"],
)
def test_any_codec_will_do_and_replicas_are_equal_bit_for_bit(codec: dict[str, Any]) -> None:
    one, two = federate(codec=codec), federate(codec=codec)
    for round in range(4):
        update = one.round().update
        two.worker.deliver(encode(update))
        assert same(weights(one.model), weights(two.model))
        assert any(n.startswith("factors/") for n in update.tensors) == (round == 1)
    assert any(one.model.get_parameter(t + B).count_nonzero() for t in adapted(weights(one.model)))


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(("make", "options"), [(tiny_model, OPTIONS), (tiny_gpt2, GPT2)])
def test_a_detached_model_computes_what_the_replica_did(
    make: Any, options: SLoRAOptions, rounds: int, tmp_path: Path
) -> None:
    base = make()
    federation = federate(options, copy.deepcopy(base))
    for _ in range(rounds):
        federation.round()
    expected = logits(federation.model)
    assert not torch.allclose(expected, logits(base))
    federation.method.scope.detach(federation.model, tmp_path)
    assert [n for n, _ in federation.model.named_parameters()] == [
        n for n, _ in base.named_parameters()
    ]
    torch.testing.assert_close(logits(federation.model), expected, rtol=0, atol=1e-5)
    assert any(tmp_path.iterdir()) == (rounds == 3), "an adapter, once there is one"


def test_an_update_of_the_other_phase_or_without_its_factors_is_refused() -> None:
    federation = federate()
    first = federation.round().update
    before = weights(federation.model)
    second = federation.round().update
    other = federate()
    other.worker.deliver(encode(first))
    bare = {n: t for n, t in second.tensors.items() if not n.startswith("factors/")}
    factors = {n: t for n, t in second.tensors.items() if n.startswith("factors/")}
    third = federation.round().update
    for spoilt in (
        replace(second, tensors=bare),
        replace(second, tensors={**second.tensors, "factors/more": torch.zeros(1)}),
        replace(third, round=1, tensors={**third.tensors, **factors}),
    ):
        with pytest.raises(UserError, match="does not fit"):
            other.worker.deliver(encode(spoilt))
        assert same(weights(other.model), before)
    other.worker.deliver(encode(second))


@pytest.mark.parametrize("options", [{"density": 0}, {"density": 1.5}, {"sparse_rounds": 0}])
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        method_options("slora", **options)


def test_frozen_matrices_in_few_bits_are_refused() -> None:
    with pytest.raises(UserError, match=r"^memory\.frozen: SLoRA"):
        federate(memory=MemoryTable(frozen="int8"))


def test_a_cache_before_the_first_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"^memory\.cache_inputs: SLoRA"):
        federate(memory=MemoryTable(cache_inputs="1MiB"), layers=(("a parameter",),))
