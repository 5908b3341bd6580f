"""A batch in parts: the same step in less memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.config import LocalTable, MemoryTable, parse_recipe
from fullfed.data.batches import collate
from fullfed.errors import UserError
from fullfed.training.first_order import train
from fullfed.training.loss import answer_loss_value, loss_value
from fullfed.training.zeroth_order import Neighbourhood
from methods.tiny import samples, tiny_model, weights
from training.architectures import make


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 10), st.integers(0, 50))
def test_parts_are_the_batch_and_no_longer_than_they_must_be(
    count: int, size: int, seed: int
) -> None:
    batch = collate(samples(count, seed))
    parts = batch.split(size)
    rows = [
        tuple(ids[mask.bool()].tolist() + labels[mask.bool()].tolist())
        for part in parts
        for ids, mask, labels in zip(part.input_ids, part.attention_mask, part.labels, strict=True)
    ]
    whole = zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True)
    expected = [tuple(i[m.bool()].tolist() + y[m.bool()].tolist()) for i, m, y in whole]
    assert sorted(rows) == sorted(expected)
    assert sum(part.tokens for part in parts) == batch.tokens
    lengths = [int(part.attention_mask.sum(dim=1).max()) for part in parts]
    assert [part.input_ids.shape[1] for part in parts] == lengths == sorted(lengths)
    assert all(len(part.labels) <= size for part in parts)
    assert batch.split(None) == [batch]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_steps_are_those_of_the_whole_batch(size: int) -> None:
    """Answers differ in length, so a plain mean over parts would be another step."""
    batches = [collate(samples(5, seed)) for seed in range(4)]
    assert len({part.tokens for part in batches[0].split(1)}) > 1
    whole, parted = tiny_model(), tiny_model()
    local = LocalTable(learning_rate=0.3, clip=1.0)
    known = train(whole, dict(whole.named_parameters()), batches, local, MemoryTable())
    local = local.model_copy(update={"micro_batch_size": size})
    found = train(parted, dict(parted.named_parameters()), batches, local, MemoryTable())
    assert found.losses == pytest.approx(known.losses, rel=1e-5)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parted)[name], value, rtol=1e-5, atol=1e-6)


def test_measured_losses_are_taken_in_parts_too() -> None:
    model, batch = make("llama"), collate(samples(5))
    local = LocalTable(micro_batch_size=2)
    seen: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True
    )
    assert loss_value(model, batch, local) == pytest.approx(
        answer_loss_value(copy.deepcopy(model), batch), rel=1e-6
    )
    nearby = Neighbourhood(model, dict(model.named_parameters()), local=local)
    assert nearby.here(batch) == loss_value(model, batch, local)
    hook.remove()
    assert set(seen[:3]) == {1, 2}


def test_parts_and_steps_in_the_backward_pass_exclude_each_other() -> None:
    tables: dict[str, Any] = {
        "model": {"path": "builtin"},
        "data": {"train": "builtin"},
        "federation": {"rounds": 1, "clients_per_round": 1},
        "method": {"name": "fedavg"},
        "local": {"clip_by": "tensor", "micro_batch_size": 1},
        "memory": {"optimizer_in_backward": True},
    }
    with pytest.raises(UserError, match=r"local\.micro_batch_size adds several up"):
        parse_recipe(tables, "recipe.toml")
