"""What float32 weights compute in: torch's autocast, and factors that matrix units round."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fullfed.config import LocalTable, MemoryTable, parse_recipe
from fullfed.data.batches import collate
from fullfed.errors import UserError
from fullfed.training.first_order import train
from fullfed.training.layers import layer_names
from fullfed.training.loss import answer_loss, answer_loss_value, loss_value
from fullfed.training.memory import held
from fullfed.training.precision import matrix_units
from fullfed.training.zeroth_order import Neighbourhood
from methods.tiny import same, samples, weights
from training.architectures import make

BATCHES = [collate(samples(4, seed=seed)) for seed in range(3)]
LOCAL = LocalTable(optimizer="adamw", learning_rate=1e-3, clip=1.0, precision="bfloat16")


def trained(model: Any, memory: MemoryTable, names: tuple[str, ...] | None = None) -> list[float]:
    parameters = {n: p for n, p in model.named_parameters() if names is None or n in names}
    local = LOCAL.model_copy(update={"clip_by": "tensor"}) if names else LOCAL
    with held(model, list(parameters.values()), memory.frozen):
        return train(model, parameters, BATCHES, local, memory).losses


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_it_is_torchs_autocast_bit_for_bit(name: str, checkpoint: bool) -> None:
    model, alone = make(name), make(name)
    losses = trained(model, MemoryTable(checkpoint_activations=checkpoint))
    optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-3, weight_decay=0.0)
    expected = []
    for batch in BATCHES:
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_loss(alone, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
    assert losses == expected
    assert same(weights(model), weights(alone))
    exact = make(name)
    with torch.no_grad():
        assert losses[0] != float(answer_loss(exact, BATCHES[0]))
    assert losses[0] == pytest.approx(float(answer_loss(exact, BATCHES[0])), rel=0.01)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("frozen", ["exact", "int8", "int4"])
@pytest.mark.parametrize("lean", [False, True])
def test_a_block_is_trained_in_it_however_the_rest_is_held(frozen: Any, lean: bool) -> None:
    model, exact = make("llama"), make("llama")
    names = layer_names(model)[0]
    memory = MemoryTable(frozen=frozen, optimizer_in_backward=lean)
    losses = trained(model, memory, names)
    parameters = {n: p for n, p in exact.named_parameters() if n in names}
    local = LOCAL.model_copy(update={"clip_by": "tensor", "precision": "float32"})
    with held(exact, list(parameters.values()), memory.frozen):
        wanted = train(exact, parameters, BATCHES, local, memory).losses
    assert losses != wanted
    assert losses == pytest.approx(wanted, rel=0.01)


def test_measured_losses_are_in_it_too() -> None:
    model, batch = make("llama"), BATCHES[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = float(answer_loss(model, batch))
    assert loss_value(model, batch, LOCAL) == expected
    assert answer_loss_value(model, batch) != expected
    nearby = Neighbourhood(model, dict(model.named_parameters()), local=LOCAL)
    assert nearby.here(batch) == expected


def test_what_torch_does_with_float32_factors_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    with matrix_units("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    model, other = make("llama"), copy.deepcopy(make("llama"))
    tables = [LOCAL.model_copy(update={"precision": p}) for p in ("tf32", "float32")]
    for trained_, table in zip((model, other), tables, strict=True):
        train(trained_, dict(trained_.named_parameters()), BATCHES, table, MemoryTable())
    assert same(weights(model), weights(other))  # on a CPU it is float32


def test_matrix_units_serve_forward_and_backward_passes_and_what_is_measured() -> None:
    model, seen = make("llama"), list[str]()

    def look(*_: Any) -> None:
        seen.append(torch.get_float32_matmul_precision())

    model.register_forward_pre_hook(look)
    weight = next(model.parameters())
    weight.register_hook(look)
    for precision, expected in (("tf32", "high"), ("float32", "highest")):
        local = LOCAL.model_copy(update={"precision": precision})
        train(model, dict(model.named_parameters()), BATCHES[:1], local, MemoryTable())
        loss_value(model, BATCHES[0], local)
        assert seen == [expected] * 3
        seen.clear()


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_it_is_for_float32_weights(precision: str) -> None:
    tables = {
        "model": {"path": "builtin", "dtype": "bfloat16"},
        "data": {"train": "builtin"},
        "federation": {"rounds": 1, "clients_per_round": 1},
        "method": {"name": "fedavg"},
        "local": {"precision": precision},
    }
    with pytest.raises(UserError, match=r"local\.precision is what float32 weights compute in"):
        parse_recipe(tables, "recipe.toml")
    tables["model"]["dtype"] = "float32"
    assert parse_recipe(tables, "recipe.toml").local.precision == precision
