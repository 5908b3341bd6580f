"""Replicas in 16 bits: no update is lost, and all replicas stay alike."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from fullfed.config import parse_recipe
from fullfed.errors import UserError
from fullfed.federation.messages import Update
from fullfed.federation.replica import Replica, Rounding
from fullfed.sketch import Purpose, Stream, round_

STEP = 1e-5  # a twelfth of what bfloat16 tells apart near 0.02
ROUNDS = 100


class Add:
    """Every update adds STEP to all weights."""

    cumulative = False

    def replicated(self, model: LlamaForCausalLM) -> dict[str, Tensor]:
        return dict(model.named_parameters())

    def moments(self, model: LlamaForCausalLM) -> dict[str, Tensor]:
        return {}

    def check_update(self, update: Update) -> None:
        pass

    def apply(self, model: LlamaForCausalLM, update: Update, moments: Mapping[str, Tensor]) -> None:
        for parameter in model.parameters():
            parameter.copy_(parameter.float() + STEP)


class AddToBase(Add):
    """Update n says that n + 1 steps are to be added to the base model."""

    cumulative = True

    def apply(self, model: LlamaForCausalLM, update: Update, moments: Mapping[str, Tensor]) -> None:
        for parameter in model.parameters():
            parameter.copy_(parameter.float() + STEP * (update.round + 1))


@pytest.fixture
def short(tiny_llama: LlamaForCausalLM) -> LlamaForCausalLM:
    for parameter in tiny_llama.parameters():
        parameter.detach().fill_(0.02)
    return tiny_llama.bfloat16()


def held(model: LlamaForCausalLM, method: Add, rounding: Rounding) -> Replica:
    return Replica(copy.deepcopy(model), method, rounding)  # type: ignore[arg-type]


def moved(replica: Replica) -> Tensor:
    """How far each weight of the model itself is from where it began."""
    start = torch.tensor(0.02).bfloat16().float()
    return torch.cat([p.detach().float().flatten() - start for p in replica.model.parameters()])


def test_a_master_loses_nothing(short: LlamaForCausalLM) -> None:
    replica = held(short, Add(), Rounding("master"))
    assert not moved(replica).any()  # version 0 is the checkpoint
    exact = {name: value.clone() for name, value in replica.exact.items()}
    for round in range(ROUNDS):
        replica.apply(Update(round))
        exact = {name: value + STEP for name, value in exact.items()}
    assert replica.state().keys() == exact.keys()
    for name, parameter in replica.model.named_parameters():
        assert torch.equal(replica.state()[name], exact[name])
        assert torch.equal(parameter, exact[name].bfloat16())


def test_the_model_sees_updates_below_its_precision_on_average(short: LlamaForCausalLM) -> None:
    """One round's 1e-5, where all weights stand in the middle of what rounds to them."""
    replica = held(short, Add(), Rounding("master", seed=5))
    replica.apply(Update(0))
    way = moved(replica)
    assert abs(float(way.mean()) - STEP) < 4 * float(way.std()) / way.numel() ** 0.5
    assert 0 < int((way != 0).sum()) < way.numel() / 4


def test_stochastic_rounding_loses_nothing_on_average(short: LlamaForCausalLM) -> None:
    replica = held(short, Add(), Rounding("stochastic", seed=5))
    for round in range(ROUNDS):
        replica.apply(Update(round))
    way = moved(replica)
    assert {p.dtype for p in replica.model.parameters()} == {torch.bfloat16}
    assert abs(float(way.mean()) - ROUNDS * STEP) < 5 * float(way.std()) / way.numel() ** 0.5
    assert float(way.std()) < ROUNDS * STEP


def test_rounding_to_nearest_would_have_lost_it_all(short: LlamaForCausalLM) -> None:
    weights = [p.detach() for p in short.parameters()]
    for weight in weights:
        before = weight.clone()
        for _ in range(ROUNDS):
            weight.copy_(weight.float() + STEP)
        assert torch.equal(weight, before)


@pytest.mark.parametrize("kind", ["master", "stochastic"])
def test_replicas_stay_alike_through_snapshots(
    short: LlamaForCausalLM, kind: str, tmp_path: Path
) -> None:
    rounding = Rounding(kind, seed=5)  # type: ignore[arg-type]
    first, second = held(short, Add(), rounding), held(short, Add(), rounding)
    for round in range(4):
        first.apply(Update(round))
        second.apply(Update(round))
    assert first.content_hash() == second.content_hash()
    first.save_snapshot(tmp_path / "snapshot")
    late = held(short, Add(), rounding)
    late.load_snapshot(tmp_path / "snapshot")
    assert late.content_hash() == first.content_hash()
    assert torch.equal(moved(late), moved(first))
    for replica in (first, late):
        replica.apply(Update(4))
    assert late.content_hash() == first.content_hash() != second.content_hash()


@pytest.mark.parametrize("kind", ["master", "stochastic"])
def test_a_late_replica_of_a_cumulative_method_is_alike(short: LlamaForCausalLM, kind: str) -> None:
    rounding = Rounding(kind, seed=5)  # type: ignore[arg-type]
    always, late = held(short, AddToBase(), rounding), held(short, AddToBase(), rounding)
    for round in range(ROUNDS):
        always.apply(Update(round))
    late.apply(Update(ROUNDS - 1))
    assert late.content_hash() == always.content_hash()
    assert abs(float(moved(late).mean()) - ROUNDS * STEP) < STEP * 10


def test_seeds_and_rounds_round_differently(short: LlamaForCausalLM) -> None:
    one, other = (held(short, Add(), Rounding("stochastic", seed)) for seed in (1, 2))
    for replica in (one, other):
        replica.apply(Update(0))
    assert not torch.equal(moved(one), moved(other))
    first = moved(one)
    one.apply(Update(1))
    assert set((moved(one) - first).unique().tolist()) > {0.0}


def test_a_base_model_has_one_hash_whatever_the_seed(short: LlamaForCausalLM) -> None:
    """Owners of nodes may allow base models by their hash."""
    for kind in ("master", "stochastic"):
        rounding = [Rounding(kind, seed) for seed in (1, 2)]  # type: ignore[arg-type]
        hashes = {held(short, Add(), own).content_hash() for own in rounding}
        assert len(hashes) == 1


def test_a_master_costs_four_bytes_a_parameter(short: LlamaForCausalLM) -> None:
    elements = sum(p.numel() for p in short.parameters())
    assert held(short, Add(), Rounding("master")).nbytes == 4 * elements
    assert held(short, Add(), Rounding("stochastic")).nbytes == 2 * elements


def test_only_bfloat16_is_rounded_at_random() -> None:
    tables = {
        "model": {"path": "builtin", "dtype": "float16", "rounding": "stochastic"},
        "data": {"train": "builtin"},
        "federation": {"rounds": 1, "clients_per_round": 1},
        "method": {"name": "fedavg"},
    }
    with pytest.raises(UserError, match="'stochastic' is for bfloat16, not float16"):
        parse_recipe(tables, "recipe.toml")


def test_round_refuses_what_does_not_match() -> None:
    stream = Stream(0, Purpose.ROUNDING)
    target = torch.zeros(3, dtype=torch.bfloat16)
    for values in ([torch.zeros(4)], [torch.zeros(3).half()], []):
        with pytest.raises(UserError):
            round_([target], values, stream)
    assert torch.equal(target, torch.zeros(3, dtype=torch.bfloat16))
