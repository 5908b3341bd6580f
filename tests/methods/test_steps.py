"""The automatic step: K / (K + r), and a measurement of r that is right."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import LlamaForCausalLM

from fullfed.data.batches import Batch, collate
from fullfed.federation.messages import Plan, Report, Update, encode, number
from fullfed.methods.setting import LocalWork
from fullfed.methods.steps import ConstantStep, CurvatureStep, Trained
from fullfed.training.first_order import FirstOrder
from methods.tiny import (
    Federation,
    flat,
    make_ferret,
    same,
    samples,
    setting,
    tiny_model,
    weights,
)

K = 100


def rule(coordinates: int = K) -> CurvatureStep:
    return CurvatureStep(5, coordinates)


def report(gain: float, noise_cost: float, client: int = 0) -> Report:
    return Report(0, client, 1, 0.0, {"gain": gain, "noise_cost": noise_cost})


def known(rank: float) -> Update:
    return Update(0, {"rank": rank})


def decided(
    gain: float, noise_cost: float, last: Update | None, coordinates: int = K
) -> tuple[float, float]:
    """The step and the rank after one report."""
    values = rule(coordinates).decide([report(gain, noise_cost)], last)
    return number(Update(0, values), "server_step"), number(Update(0, values), "rank")


def test_a_constant_step_is_constant() -> None:
    assert ConstantStep(0.7).decide([], None) == {"server_step": 0.7}


@pytest.mark.parametrize(
    ("coordinates", "energy", "trace", "gain"),
    [(100, 0.5, 800.0, 0.4), (1000, 2.0, 300.0, 0.5), (10, 0.01, 5000.0, 0.125)],
)
def test_the_step_is_k_over_k_and_the_rank(
    coordinates: int, energy: float, trace: float, gain: float
) -> None:
    """r = tr(H) ||delta||**2 / G."""
    rank = trace * energy / gain
    step, found = decided(gain, trace * energy, known(rank), coordinates)
    assert found == pytest.approx(rank)
    assert step == pytest.approx(coordinates / (coordinates + rank))


def test_the_first_round_takes_what_it_measures() -> None:
    assert decided(1.0, 400.0, None)[1] == pytest.approx(400.0)


def test_the_rank_is_smoothed_in_its_logarithm() -> None:
    """100 was known, 400 is measured: 200."""
    assert decided(1.0, 400.0, known(100.0))[1] == pytest.approx(200.0)


@pytest.mark.parametrize(("cost", "rank"), [(1e9, math.sqrt(10) * 50), (1e-9, 50 / math.sqrt(10))])
def test_one_round_moves_the_rank_by_ten_at_most_before_smoothing(cost: float, rank: float) -> None:
    assert decided(1.0, cost, known(50.0))[1] == pytest.approx(rank)


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_where_nothing_is_gained_the_step_becomes_smaller(gain: float) -> None:
    step, rank = decided(gain, 1.0, known(50.0))
    assert rank == pytest.approx(50 * math.sqrt(10))
    assert step < K / (K + 50)


def test_where_curvature_is_negative_the_step_becomes_larger() -> None:
    assert decided(1.0, -5.0, known(50.0))[0] > K / (K + 50)


def test_more_coordinates_make_a_larger_step() -> None:
    steps = [decided(1.0, 500.0, known(500.0), k)[0] for k in (1, 10, 100, 1000, 10**6)]
    assert steps == sorted(steps)
    assert 0 < steps[0] < 0.01
    assert 0.99 < steps[-1] < 1


def test_the_round_is_measured_as_a_whole() -> None:
    """Clients' gains and costs are averaged before they are divided: 400 / 1, not 50 - 600."""
    reports = [report(3.0, 150.0, client=0), report(-1.0, 650.0, client=1)]
    values = rule().decide(reports, known(400.0))
    assert number(Update(0, values), "rank") == pytest.approx(400.0)


def fitted(batch: Batch) -> LlamaForCausalLM:
    """A model near a minimum, where the curvature is positive."""
    model = tiny_model()
    FirstOrder("sgd", 0.3).improve(model, list(model.parameters()), [batch] * 150)
    return model


def loss_by_hand(model: LlamaForCausalLM, state: dict[str, Tensor], batch: Batch) -> Tensor:
    """Mean cross-entropy over the answers, of the model with other weights."""
    logits = functional_call(model, state, (batch.input_ids,), {"use_cache": False}).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), batch.labels[:, 1:].reshape(-1)
    )


def trace_by_hand(model: LlamaForCausalLM, batch: Batch) -> float:
    """tr(H) from its definition: the sum of the second derivatives, every one of them."""
    model = copy.deepcopy(model).double()
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(row: Tensor) -> Tensor:
        parts = torch.split(row, [shape.numel() for shape in shapes.values()])
        state = {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        return loss_by_hand(model, state, batch)

    hessian = torch.autograd.functional.hessian(loss, flat(weights(model)))
    assert torch.allclose(hessian, hessian.T, atol=1e-3)  # Llama's norms compute in float32
    return float(hessian.trace())


def test_a_clients_measurement_is_right() -> None:
    batch = collate(samples(6))
    model = fitted(batch)
    expected = trace_by_hand(model, batch)
    before = weights(model)
    generator = torch.Generator().manual_seed(0)
    after = {n: p + 0.03 * torch.randn(p.shape, generator=generator) for n, p in before.items()}
    energy = float((flat(after) - flat(before)).square().sum())
    with torch.no_grad():
        first_loss = float(loss_by_hand(model, before, batch))
        gain = first_loss - float(loss_by_hand(model, after, batch))
    last = known(rank=9 * K)  # a step of 0.1, so that what is measured is the second order
    costs = []
    for round in range(500):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(after[name])
        values = rule().measure(
            Trained(model, before, dict(model.named_parameters()), batch, first_loss),
            Plan(round, 0),
            last,
        )
        assert values["gain"] == pytest.approx(gain, rel=1e-3)
        assert same(weights(model), before)
        costs.append(float(values["noise_cost"]))  # type: ignore[arg-type]
    measured = torch.tensor(costs) / energy
    error = float(measured.std()) / math.sqrt(len(costs))
    assert float(measured.mean()) == pytest.approx(expected, abs=4 * error)
    assert error < 0.05 * expected


def three(**options: Any) -> Federation:
    model = tiny_model()
    made = setting(
        model,
        clients=3,
        work=LocalWork(batch_size=4, steps=5),
        optimizer=FirstOrder("sgd", 0.2, clip=1.0),
    )
    return Federation(model, make_ferret(made, **options), [samples(9, seed=n) for n in range(3)])


@pytest.mark.parametrize("seeds", ["shared", "client"])
@pytest.mark.parametrize("basis", ["sign", "normal"])
def test_a_run_carries_what_it_measured_from_round_to_round(seeds: str, basis: str) -> None:
    federation = three(coordinates=40, seeds=seeds, basis=basis)
    ranks = []
    for _ in range(4):
        values = federation.round().update.values
        rank, step = values["rank"], values["server_step"]
        assert isinstance(rank, float)
        assert step == pytest.approx(40 / (40 + rank))
        ranks.append(rank)
    for earlier, later in pairwise(ranks):
        # A factor of ten at most, smoothed by half in the logarithm.
        assert 1 / math.sqrt(10.001) < later / earlier < math.sqrt(10.001)


def test_the_rule_needs_nothing_but_the_last_update() -> None:
    """A server that begins from the log decides as the one that was there all along."""
    there, newcomer = three(coordinates=40), three(coordinates=40)
    for _ in range(2):
        newcomer.worker.deliver(encode(there.round().update))
    assert encode(there.round().update) == encode(newcomer.round().update)
