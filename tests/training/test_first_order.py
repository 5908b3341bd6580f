"""Local training is torch's own, step by step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from fullfed.config import LocalTable, MemoryTable
from fullfed.data.batches import IGNORED, Batch, collate
from fullfed.training.first_order import Improvement, TrainingError, train
from fullfed.training.loss import Loss, answer_loss, answer_loss_value
from methods.tiny import adamw, same, samples, sgd, tiny_model, weights


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture
def batches() -> list[Batch]:
    return [collate(samples(3, seed)) for seed in range(4)]


def improve(
    model: LlamaForCausalLM, batches: list[Batch], local: LocalTable, loss: Loss = answer_loss
) -> Improvement:
    """Train all of the model."""
    return train(model, dict(model.named_parameters()), batches, local, MemoryTable(), loss)


def gradients(model: LlamaForCausalLM, batch: Batch, clip: float | None) -> list[Tensor]:
    """Of the answers' mean cross-entropy as transformers reckons it, scaled down by hand."""
    model.zero_grad()
    model(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    norm = torch.sqrt(sum((g.square().sum() for g in found), torch.zeros(())))
    if clip is not None and norm > clip:
        found = [g * (clip / norm) for g in found]
    return found


def by_hand_sgd(
    model: LlamaForCausalLM,
    batches: list[Batch],
    lr: float,
    momentum: float,
    decay: float,
    clip: Any,
) -> None:
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for batch in batches:
        for p, v, g in zip(
            model.parameters(), velocity, gradients(model, batch, clip), strict=True
        ):
            v.mul_(momentum).add_(g + decay * p.detach())
            p.data.sub_(lr * v)


def by_hand_adamw(
    model: LlamaForCausalLM, batches: list[Batch], lr: float, decay: float, clip: Any
) -> None:
    """Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2."""
    first = [torch.zeros_like(p) for p in model.parameters()]
    second = [torch.zeros_like(p) for p in model.parameters()]
    for t, batch in enumerate(batches, start=1):
        found = gradients(model, batch, clip)
        for p, m, v, g in zip(model.parameters(), first, second, found, strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            p.data.sub_(lr * decay * p.detach() + lr * step)


@pytest.mark.parametrize(
    ("momentum", "decay", "clip"),
    [(0.0, 0.0, None), (0.9, 0.0, None), (0.5, 0.1, None), (0.0, 0.0, 0.2), (0.9, 0.1, 0.2)],
)
def test_sgd_is_the_algorithm_written_out(
    model: LlamaForCausalLM,
    batches: list[Batch],
    momentum: float,
    decay: float,
    clip: float | None,
) -> None:
    expected = tiny_model()
    by_hand_sgd(expected, batches, 0.3, momentum, decay, clip)
    improve(model, batches, sgd(0.3, momentum=momentum, weight_decay=decay, clip=clip))
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("decay", "clip"), [(0.0, None), (0.1, None), (0.1, 0.2)])
def test_adamw_is_the_algorithm_written_out(
    model: LlamaForCausalLM, batches: list[Batch], decay: float, clip: float | None
) -> None:
    expected = tiny_model()
    by_hand_adamw(expected, batches, 0.01, decay, clip)
    improve(model, batches, adamw(0.01, weight_decay=decay, clip=clip))
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


def test_each_batchs_loss_is_that_before_its_step(
    model: LlamaForCausalLM, batches: list[Batch]
) -> None:
    losses = improve(model, batches, sgd(0.3)).losses
    other = tiny_model()
    for seen, batch in zip(losses, batches, strict=True):
        assert seen == pytest.approx(answer_loss_value(other, batch), rel=1e-5)
        by_hand_sgd(other, [batch], 0.3, 0.0, 0.0, None)


def test_nothing_of_a_visit_is_left_for_the_next(
    model: LlamaForCausalLM, batches: list[Batch]
) -> None:
    """Momentum and gradients of one client's data would reach the next client's report."""
    base = weights(model)
    local = sgd(0.3, momentum=0.9)
    improve(model, batches, local)
    once = weights(model)
    assert all(p.grad is None for p in model.parameters())
    model.load_state_dict(base, strict=False)
    improve(model, batches, local)
    assert same(weights(model), once)


def test_parameters_that_are_not_trained_stay(
    model: LlamaForCausalLM, batches: list[Batch]
) -> None:
    before = weights(model)
    trained = {"model.norm.weight": model.model.norm.weight}
    train(model, trained, batches, adamw(0.1), MemoryTable())
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"model.norm.weight"}


def test_the_model_does_not_drop_out(batches: list[Batch]) -> None:
    model = tiny_model()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    model.train()
    improve(model, batches, sgd(0.3))
    expected = tiny_model()
    improve(expected, batches, sgd(0.3))
    assert same(weights(model), weights(expected))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error(
    model: LlamaForCausalLM, batches: list[Batch], bad: float
) -> None:
    factors = iter([1.0, 1.0, bad, 1.0])

    def loss(model: Any, batch: Batch) -> Tensor:
        return answer_loss(model, batch) * next(factors)

    with pytest.raises(TrainingError, match="training loss is not finite; lower"):
        improve(model, batches, sgd(0.3), loss)


def test_padding_and_prompts_do_not_train(model: LlamaForCausalLM) -> None:
    """The same answers with other padding, and a sample without an answer beside them."""
    batch = collate(samples(2, seed=1))
    idle = torch.full((1, batch.labels.shape[1]), 3)
    padded = replace(
        batch,
        input_ids=torch.cat([batch.input_ids, idle]),
        attention_mask=torch.cat([batch.attention_mask, torch.ones_like(idle)]),
        labels=torch.cat([batch.labels, torch.full_like(idle, IGNORED)]),
    )
    other = tiny_model()
    improve(model, [batch], sgd(0.3))
    improve(other, [padded], sgd(0.3))
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
