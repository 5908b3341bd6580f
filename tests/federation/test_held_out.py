"""The held-out check: gains by brute force, who does harm, and a replica that is as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fullfed.evaluation.evaluate import evaluate_loss
from fullfed.federation.held_out import FAR, HeldOutCheck, harmful, persistent
from fullfed.federation.messages import Report, decode, encode
from fullfed.federation.replica import Replica, Rounding
from fullfed.methods.composition import Composition
from fullfed.training.layers import layer_names
from methods.tiny import (
    chosen,
    make_fedavg,
    make_ferret,
    method_options,
    same,
    samples,
    setting,
    tiny_model,
)

from fullfed.methods import fedcybgd, fedkseed  # isort: skip

DATA = [samples(8, seed) for seed in range(4)]
HELD_OUT = samples(8, 9)


def dense(precision: str) -> Callable[[Any], Composition]:
    def make(model: Any) -> Composition:
        codec = chosen("fedavg", codec={"name": "dense", "precision": precision}).codec
        return make_fedavg(setting(model, clients=4, codec=codec))

    return make


MAKERS: dict[str, Callable[[Any], Composition]] = {
    "dense weights": dense("float32"),
    "dense changes": dense("bfloat16"),
    "shared directions": lambda model: make_ferret(
        setting(model, clients=4), coordinates=200, seeds="shared"
    ),
    "own directions": lambda model: make_ferret(setting(model, clients=4), coordinates=200),
    "seeds": lambda model: fedkseed.build(
        setting(model, clients=4), method_options("fedkseed", seeds=8)
    ),
    "blocks": lambda model: fedcybgd.build(
        setting(model, clients=4, layers=tuple(map(tuple, layer_names(model)))),
        method_options("fedcybgd", clients_per_block=4),
    ),
}


def first_round(method: Composition, model: Any) -> list[tuple[Report, Any]]:
    """Each client's report on the base model, with its plan."""
    return [
        (method.train(model, plan, DATA[plan.client], None).report, plan)
        for plan in method.plans(0, None)
    ]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_gain_is_what_applying_the_clients_part_takes_off_the_loss(kind: str) -> None:
    model = tiny_model()
    method = MAKERS[kind](model)
    replica = Replica(model, method)
    reports, before = first_round(method, model), copy.deepcopy(model.state_dict())
    loss = partial(evaluate_loss, model, HELD_OUT, 4)
    gains = HeldOutCheck(replica, loss, None).gains(reports, len(reports))
    assert same(before, model.state_dict()), "the model is as it was, bit for bit"
    assert [*gains] == [0, 1, 2, 3]
    base = loss()
    for report, plan in reports:
        # A round of this client alone, a quarter of which is applied.
        update = method.aggregate([plan], [report], None)
        with torch.no_grad():
            method.apply(model, update)
        whole = {name: p.detach().clone() for name, p in model.named_parameters()}
        known = method.alone(report, plan, None, 1.0).values["server_step"]
        share = 0.25 * float(known) / float(update.values["server_step"])  # type: ignore[arg-type]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.lerp(before[name], whole[name], share))
        assert gains[report.client] == pytest.approx(base - loss(), rel=0.02, abs=2e-5)
        model.load_state_dict(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["master", "stochastic"])
def test_a_trial_leaves_no_trace(dtype: torch.dtype, kind: Any) -> None:
    model = tiny_model().to(dtype)
    method = make_ferret(setting(model, clients=4), coordinates=200)
    replica = Replica(model, method, Rounding(kind if dtype == torch.bfloat16 else "master"))
    (report, plan), *_ = first_round(method, model)
    digest, loss = replica.content_hash(), evaluate_loss(model, HELD_OUT, 4)
    with replica.trial(method.alone(report, plan, None, 1.0)):
        assert evaluate_loss(model, HELD_OUT, 4) != loss
    assert replica.content_hash() == digest
    with pytest.raises(KeyError), replica.trial(method.alone(report, plan, None, 1.0)):
        raise KeyError
    assert replica.content_hash() == digest


def test_a_report_whose_loss_is_no_number_does_the_most_harm() -> None:
    model = tiny_model()
    method = make_fedavg(setting(model, clients=4))
    losses = iter([1.0, float("nan"), 0.9, float("inf"), 0.8])
    check = HeldOutCheck(Replica(model, method), lambda: next(losses), None)
    gains = check.gains(first_round(method, model), 4)
    assert [*gains.values()] == pytest.approx([-999.0, 0.1, -999.0, 0.2])


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([0.1, 0.1, 0.12, -0.3], [3]),
        ([0.1, 0.09, 0.12, -0.05], []),  # other data: it costs half of what the median brings
        ([0.3, 0.1, 0.05, -0.09, 0.02], []),  # far, but clients differ as much
        ([0.1, -0.5, -0.5, -0.5], []),  # most do harm
        ([0.0, 0.0, 0.0, -0.5], []),  # nobody helps
        ([0.1, -0.5], []),  # too few to compare
        ([0.1, 0.1, -0.5], [2]),
    ],
)
def test_who_does_harm(gains: list[float], expected: list[int]) -> None:
    assert harmful(dict(enumerate(gains))) == expected


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.floats(1e-3, 1e3), st.randoms())
def test_who_does_harm_does_more_than_the_median_helps_and_stands_apart(
    gains: list[float], factor: float, random: Any
) -> None:
    found = harmful(dict(enumerate(gains)))
    assert 2 * len(found) < len(gains) or not found, "never half of the cohort"
    middle = sorted(gains)[(len(gains) - 1) // 2]
    near = [gain for gain in gains if abs(gain - middle) <= min(abs(gains[c] - middle) / FAR
            for c in found)] if found else []  # fmt: skip
    assert not found or 2 * len(near) >= len(gains)
    assert all(gains[client] < -middle < 0 for client in found)
    order = [*range(len(gains))]
    random.shuffle(order)
    assert harmful({client: gains[client] for client in order}) == found


def test_only_harm_in_visits_one_after_another_adds_up() -> None:
    def of(left_out: list[int], seen: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
        return {"gains": {str(client): 0.0 for client in seen}, "left_out": left_out}

    assert persistent([of([1]), of([1, 2]), of([1])], 3) == [1]
    assert persistent([of([1]), of([1]), of([]), of([1])], 3) == []
    assert persistent([of([1]), of([1]), of([], seen=(2,)), of([1])], 3) == [1]
    assert persistent([of([1])] * 3 + [of([])] * 9, 3) == [1], "until the operator says so"
    assert persistent([], 1) == []


def test_a_decoded_report_gains_what_the_report_does() -> None:
    """The check sees what arrived: bytes."""
    model = tiny_model()
    method = MAKERS["own directions"](model)
    reports = first_round(method, model)
    loss = partial(evaluate_loss, model, HELD_OUT, 4)
    check = HeldOutCheck(Replica(model, method), loss, None)
    arrived = [(decode(encode(report), Report), plan) for report, plan in reports]
    assert check.gains(arrived, 4) == check.gains(reports, 4)
