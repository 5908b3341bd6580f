"""FLoRA: what everybody adds to the frozen matrices is the clients' products, averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fullfed.federation.messages import MessageError, Report, encode
from fullfed.federation.replica import Replica
from fullfed.methods.codecs.stacked import Stacked, product
from fullfed.methods.scopes import A, B, LoraOptions, W, adapted, initial_a
from methods.lora import (
    OPTIONS,
    SEED,
    effective,
    federate,
    mean_of_products,
    reports,
    three_clients,
)
from methods.test_adapters import GPT2, tiny_gpt2
from methods.tiny import Federation, adamw, same, tiny_model, weights

LONG = {"work": {"batch_size": 4, "steps": 5}, "local": adamw(0.03)}


def flora(dtype: torch.dtype = torch.float32, weights: str = "samples") -> Federation:
    model = tiny_model().to(dtype)
    return federate("flora", model, three_clients(), weights=weights, **LONG)


def random(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def test_the_matrices_gain_the_mean_of_products_round_by_round() -> None:
    federation = flora()
    for round in range(3):
        before = effective(federation.model)
        sent = reports(federation)
        gained = mean_of_products(federation.model, sent)
        federation.round()
        parameters = dict(federation.model.named_parameters())
        for number, target in enumerate(adapted(parameters)):
            wanted = before[target] + OPTIONS.scaling * gained[target]
            assert gained[target].abs().max() > 1e-3
            torch.testing.assert_close(
                parameters[target + W].detach().double(), wanted, rtol=0, atol=1e-6
            )
            a = parameters[target + A]
            assert torch.equal(a, initial_a(SEED, round + 1, number, a.shape))
            assert parameters[target + B].count_nonzero() == 0


def test_a_matrix_kept_as_in_by_out_gains_the_same() -> None:
    model = tiny_gpt2()
    federation = federate("flora", model, three_clients(), GPT2, **LONG)
    before = {name: tensor.double() for name, tensor in weights(model).items()}
    gained = mean_of_products(model, reports(federation))
    federation.round()
    assert len(gained) == 4
    for target, mean in gained.items():
        after = model.get_parameter(target + W).detach().double()
        wanted = before[target + W] + GPT2.scaling * mean.T
        torch.testing.assert_close(after, wanted, rtol=0, atol=1e-6)


def test_clients_can_count_once_each() -> None:
    federation = flora(weights="equal")
    before = effective(federation.model)
    sent = [Report(r.round, r.client, 1, r.loss, {}, r.tensors) for r in reports(federation)]
    gained = mean_of_products(federation.model, sent)
    federation.round()
    for target, after in effective(federation.model).items():
        wanted = before[target] + OPTIONS.scaling * gained[target]
        torch.testing.assert_close(after, wanted, rtol=0, atol=1e-6)


def test_a_model_of_16_bits_is_rounded_once() -> None:
    federation = flora(torch.bfloat16)
    exact = federation.worker.replica.exact
    before = {name: value.clone() for name, value in exact.items()}
    update = federation.round().update
    for target in adapted(weights(federation.model)):
        b, a = update.tensors[target + B], update.tensors[target + A]
        wanted = before[target + W] + product(b * OPTIONS.scaling, a)
        assert torch.equal(federation.model.get_parameter(target + W), wanted.bfloat16())


def test_the_download_grows_with_the_cohort_and_the_upload_does_not() -> None:
    federation = flora()
    result = federation.round()
    numbers = sum(shape.numel() for shape in federation.method.setting.shapes.values())
    assert sum(t.numel() for t in result.update.tensors.values()) == 3 * numbers
    for report in reports(federation):
        assert sum(t.numel() for t in report.tensors.values()) == numbers


def test_replicas_that_apply_the_same_bytes_are_equal_bit_for_bit() -> None:
    one, two = flora(), flora()
    for _ in range(2):
        two.worker.deliver(encode(one.round().update))
        assert same(weights(one.model), weights(two.model))


@pytest.mark.parametrize(("make", "options"), [(tiny_model, OPTIONS), (tiny_gpt2, GPT2)])
def test_a_snapshot_is_the_replica(make: Any, options: LoraOptions, tmp_path: Path) -> None:
    one, two = (federate("flora", make(), three_clients(), options) for _ in range(2))
    one.round()
    assert not same(weights(one.model), weights(two.model))
    one.worker.replica.save_snapshot(tmp_path / "snapshot")
    replica = Replica(two.model, two.method)
    replica.load_snapshot(tmp_path / "snapshot")
    assert replica.version == 1
    assert same(weights(one.model), weights(two.model))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 9))
def test_a_product_rounds_each_multiplication_and_each_sum(
    rows: int, columns: int, rank: int, seed: int
) -> None:
    b, a = random(seed, rows, rank), random(seed + 1, rank, columns)
    total = np.zeros((rows, columns), np.float32)
    for k in range(rank):
        for i in range(rows):
            for j in range(columns):
                term = np.float32(b[i, k].item()) * np.float32(a[k, j].item())
                total[i, j] = np.float32(total[i, j] + term)
    assert np.array_equal(product(b, a).numpy(), total)


def test_a_large_product_is_the_same_with_any_number_of_threads() -> None:
    b, a = random(0, 1030, 24), random(1, 24, 517)
    threads = torch.get_num_threads()
    alone = product(b, a)
    try:
        torch.set_num_threads(2)
        assert torch.equal(product(b, a), alone)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(alone.double(), b.double() @ a.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"x" + A: torch.zeros(2, 4)},
        {"x" + A: torch.zeros(2, 4), "x" + B: torch.zeros(3, 3)},
        {"x" + A: torch.zeros(2, 4), "x" + B: torch.zeros(3, 2).double()},
        {"x" + A: torch.zeros(2, 4), "x" + B: torch.zeros(3, 2), "y" + A: torch.zeros(2, 4)},
    ],
)
def test_a_report_of_other_tensors_is_refused(tensors: dict[str, Tensor]) -> None:
    codec = Stacked(seed=SEED, scaling=1.0)
    shapes = {"x" + A: torch.Size((2, 4)), "x" + B: torch.Size((3, 2))}
    plan = flora().method.plans(0, None)[0]
    good = {"x" + A: torch.zeros(2, 4), "x" + B: torch.zeros(3, 2)}
    codec.check(Report(0, 0, 1, 0.0, {}, good), plan, shapes)
    with pytest.raises(MessageError):
        codec.check(Report(0, 0, 1, 0.0, {}, tensors), plan, shapes)
