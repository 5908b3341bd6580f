"""A visit leaves the replica as it found it, to the last bit, whatever happens in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import LocalTable
from fullfed.data.batches import Batch
from fullfed.engines.simulation import Simulation
from fullfed.errors import UserError
from fullfed.federation.messages import MessageError, Plan, Report, decode, encode
from fullfed.federation.server import run_round
from fullfed.methods.codecs.dense import Dense
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import FirstOrder
from fullfed.methods.setting import Setting
from fullfed.training.first_order import Improvement
from methods.tiny import (
    Federation,
    adamw,
    make_fedavg,
    make_ferret,
    same,
    samples,
    setting,
    sgd,
    tiny_model,
    weights,
)


def in_16_bits(setting: Setting) -> Composition:
    return make_fedavg(replace(setting, codec=Dense("bfloat16")))


METHODS: dict[str, Callable[[Setting], Composition]] = {
    "fedavg": make_fedavg,
    "fedavg in bfloat16": in_16_bits,
    "ferret": lambda s: make_ferret(s, coordinates=50),
    "ferret with a constant step": lambda s: make_ferret(s, coordinates=50, server_step=0.5),
    "ferret with the paper's directions": lambda s: make_ferret(s, coordinates=50, basis="normal"),
}


@pytest.fixture(params=METHODS)
def make(request: pytest.FixtureRequest) -> Callable[[Setting], Composition]:
    return METHODS[request.param]


def federation(
    make: Callable[[Setting], Composition], dtype: torch.dtype = torch.float32, **changes: Any
) -> Federation:
    """Two clients who take three steps."""
    model = tiny_model().to(dtype)
    known = {"clients": 2, "work": {"batch_size": 2, "steps": 3}}
    return Federation(model, make(setting(model, **(known | changes))), [samples(5), samples(4, 1)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_visit_leaves_the_weights_bit_for_bit(
    make: Callable[[Setting], Composition], dtype: torch.dtype
) -> None:
    ours = federation(make, dtype)
    before = weights(ours.model)
    for plan in ours.method.plans(0, None):
        assert ours.worker.visit(encode(plan)).payload is not None
        assert same(weights(ours.model), before)


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (sgd(1e30), "not finite"),
        (sgd(1e38, momentum=0.9), "not finite"),
        (adamw(1e30), "not finite"),
    ],
)
def test_a_client_whose_training_diverges_says_so_and_leaves_the_weights(
    make: Callable[[Setting], Composition], optimizer: LocalTable, reason: str
) -> None:
    ours = federation(make, local=optimizer)
    before = weights(ours.model)
    with pytest.raises(UserError, match=r"round 0: no client sent a usable report") as caught:
        ours.round()
    assert reason in str(caught.value)
    assert same(weights(ours.model), before)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("rate", [1e5, 1e10, 1e20, 1e30, 3e38])
def test_no_learning_rate_makes_more_than_a_refusal(
    make: Callable[[Setting], Composition], rate: float, steps: int
) -> None:
    """Weights may be finite where the loss on them is not, and the other way round."""
    work = {"batch_size": 2, "steps": steps}
    ours = federation(make, local=sgd(rate), work=work)
    before = weights(ours.model)
    for plan in ours.method.plans(0, None):
        arrival = ours.worker.visit(encode(plan))
        assert same(weights(ours.model), before)
        assert (arrival.payload is None) == bool(arrival.failure)
        if arrival.payload is not None:
            try:
                decode(arrival.payload, Report)
            except MessageError as error:
                assert "not finite" in str(error)  # noqa: PT017


def test_a_visit_that_breaks_down_leaves_the_weights(
    make: Callable[[Setting], Composition], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is no error of training, such as memory that runs out."""

    def improve(
        self: FirstOrder,
        model: PreTrainedModel,
        parameters: dict[str, Tensor],
        batches: Iterable[Batch],
        *_: Any,
    ) -> Improvement:
        with torch.no_grad():
            list(parameters.values())[3].add_(1.0)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(FirstOrder, "improve", improve)
    ours = federation(make)
    before = weights(ours.model)
    with pytest.raises(RuntimeError, match="out of memory"):
        ours.worker.visit(encode(Plan(0, 0, *plan_parts(ours))))
    assert same(weights(ours.model), before)


def plan_parts(ours: Federation) -> tuple[Any, Any]:
    plan = ours.method.plans(0, None)[0]
    return plan.values, plan.tensors


def test_a_failed_client_does_not_change_what_the_others_report(
    make: Callable[[Setting], Composition],
) -> None:
    ours, alone = federation(make), federation(make)
    first, second = ours.method.plans(0, None)
    setting = replace(ours.method.setting, local=sgd(1e30))
    diverging = replace(ours.method, local=FirstOrder(setting))
    ours.worker._method = diverging
    assert ours.worker.visit(encode(first)).failure
    ours.worker._method = ours.method
    assert ours.worker.visit(encode(second)).payload == alone.worker.visit(encode(second)).payload


def test_a_visit_is_a_function_of_the_plan_alone(
    make: Callable[[Setting], Composition],
) -> None:
    """So that clients can be visited in any order, again, and by any number of workers."""
    ours, other = federation(make), federation(make)
    first, second = (encode(plan) for plan in ours.method.plans(0, None))
    forth = [ours.worker.visit(first).payload, ours.worker.visit(second).payload]
    torch.manual_seed(123)
    back = [other.worker.visit(second).payload, other.worker.visit(first).payload]
    assert forth == back[::-1]
    assert ours.worker.visit(first).payload == forth[0]


def test_the_report_tells_the_samples_and_the_mean_loss(
    make: Callable[[Setting], Composition],
) -> None:
    ours = federation(make)
    plan = ours.method.plans(0, None)[0]
    payload = ours.worker.visit(encode(plan)).payload
    assert payload is not None
    report = decode(payload, Report)
    assert (report.round, report.client, report.samples) == (0, 0, 5)
    assert 0.5 < report.loss < 5.0  # ln 11 = 2.4 for a model that knows nothing


def test_work_is_counted_in_steps_or_in_epochs() -> None:
    assert LocalTable(batch_size=4, steps=7).batches(samples=3) == 7
    assert LocalTable(batch_size=4, epochs=2).batches(samples=9) == 6
    assert LocalTable(batch_size=4, epochs=1).batches(samples=1) == 1
    assert LocalTable(batch_size=4).batches(samples=9) == 3


def test_reports_of_a_round_are_the_ones_the_worker_sent(
    make: Callable[[Setting], Composition],
) -> None:
    ours = federation(make)
    sent: list[int] = []
    result = run_round(
        ours.method,
        Simulation(ours.worker),
        0,
        None,
        ours.model,
        lambda arrival: sent.append(len(arrival.payload or b"")),
    )
    assert list(result.up.values()) == sent
    assert result.train_seconds > 0
