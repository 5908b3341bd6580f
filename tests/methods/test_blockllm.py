"""BlockLLM: a visit by torch, the mean of visits, sets that change, moments that go with them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from fullfed.data.batches import collate, training_batches
from fullfed.errors import UserError
from fullfed.federation.messages import Plan, Report, decode, encode
from fullfed.methods.aggregation import mean_near_median
from fullfed.methods.blockllm import BlockLLM, gradient_norms
from fullfed.methods.selection import Selection, told_norms
from fullfed.randomness import Purpose, Stream
from fullfed.training.loss import answer_loss
from methods.test_compositions import built, data, recipe
from methods.tiny import Federation, flat, method_options, same, samples, weights
from training.architectures import CAUSAL, make

CLIENTS = 3


def federation(codec: dict[str, Any] | None = None, **changes: Any) -> Federation:
    tables: dict[str, Any] = {"codec": codec} if codec else {}
    if "optimizer_state" in changes:
        kept = changes.pop("optimizer_state")
        local = {"optimizer": "adamw", "learning_rate": 0.01, "steps": 2, "batch_size": 4}
        tables["local"] = {**local, "optimizer_state": kept}
    told = recipe(CLIENTS, method={"name": "blockllm", **changes}, **tables)
    return built(make("llama"), CLIENTS, told)


def method_of(federation: Federation) -> BlockLLM:
    assert isinstance(federation.method, BlockLLM)
    return federation.method


@pytest.mark.parametrize("name", CAUSAL)
def test_norms_are_those_of_plain_gradients_in_float64(name: str) -> None:
    model, batch = make(name), collate(samples(3))
    exact = copy.deepcopy(model).double()
    answer_loss(exact, batch).backward()
    own = dict(model.named_parameters())
    for parameter_name, norm in gradient_norms(model, own, batch).items():
        gradient = exact.get_parameter(parameter_name).grad
        wanted = 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient))
        assert norm == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert all(p.grad is None for p in own.values())


def test_a_round_is_adam_on_the_set_and_a_mean_in_float64() -> None:
    ours = federation()
    before, plans = copy.deepcopy(ours.model), ours.method.plans(0, None)
    names = list(ours.method.shapes_of(plans[0]))
    assert (
        0
        < sum(before.get_parameter(n).numel() for n in names)
        <= 0.1 * sum(p.numel() for p in before.parameters())
    )
    total, count = dict.fromkeys(names, torch.zeros((), dtype=torch.float64)), 0
    norms: dict[str, list[float]] = {name: [] for name, _ in before.named_parameters()}
    for plan in plans:
        alone, examples = copy.deepcopy(before), data(CLIENTS)[plan.client]
        own = [alone.get_parameter(n) for n in names]
        optimizer = torch.optim.AdamW(own, lr=0.01, weight_decay=0.0)
        stream = Stream(5, Purpose.BATCHES, 0, plan.client)
        for step, batch in enumerate(training_batches(examples, 4, 2, stream)):
            alone.zero_grad()
            answer_loss(alone, batch).backward()
            if step == 0:
                for name, p in alone.named_parameters():
                    assert p.grad is not None
                    norms[name].append(float(p.grad.double().norm()))
            torch.nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
        for name, p in zip(names, own, strict=True):
            total[name] = total[name] + len(examples) * p.detach().double()
        count += len(examples)
    result = ours.round()
    assert len(result.aggregated) == CLIENTS
    wanted = weights(before) | {name: value / count for name, value in total.items()}
    torch.testing.assert_close(flat(weights(ours.model)), flat(wanted), rtol=0, atol=1e-5)
    known = Selection.of(result.update)
    assert known.losses == (pytest.approx(result.loss),)
    means = [mean_near_median(own) for own in norms.values()]
    torch.testing.assert_close(torch.tensor(known.norms), torch.tensor(means))


def test_the_set_changes_by_the_norms_and_everybody_has_the_same() -> None:
    ours, twin = federation(patience=2), federation(patience=2)
    method, sets = method_of(ours), list[tuple[int, ...]]()
    for round in range(6):
        last = ours.last
        plans = method.plans(round, last)
        assert [plan.values for plan in plans] == [plans[0].values] * CLIENTS
        before = weights(ours.model)
        update = ours.round().update
        twin.worker.deliver(encode(update))
        changed = {n for n, p in weights(ours.model).items() if not torch.equal(p, before[n])}
        assert changed <= set(method.shapes_of(plans[0]))
        sets.append(Selection.of(update).chosen)
        known = None if last is None else Selection.of(last)
        if known is not None and known.norms:
            assert (sets[-1] != sets[-2]) >= (Selection.of(update).number != known.number)
    assert len(set(sets)) > 1
    assert same(weights(ours.model), weights(twin.model))


@pytest.mark.parametrize(
    "codec",
    [
        {"name": "sketch", "coordinates": 24},
        {"name": "sketch", "coordinates": 24, "basis": "normal", "seeds": "shared"},
        {"name": "topk", "count": 9},
        {"name": "dense", "precision": "int8", "error_feedback": True},
    ],
)
def test_it_works_with_any_codec(codec: dict[str, Any]) -> None:
    ours, twin = (federation(codec, patience=2, sparsity=0.5) for _ in range(2))
    for _ in range(5):
        before = weights(ours.model)
        result = ours.round()
        assert len(result.aggregated) == CLIENTS, result.refused
        twin.worker.deliver(encode(result.update))
        assert not same(weights(ours.model), before)
    assert same(weights(ours.model), weights(twin.model))


def test_a_new_set_has_new_moments() -> None:
    ours = federation(optimizer_state="kept")
    method = method_of(ours)
    first = method.plans(0, None)[0]
    visit = method.train(ours.model, first, data(CLIENTS)[first.client], None)
    names = {place.removeprefix("local/").rpartition("/")[0] for place in visit.state}
    assert names == set(method.shapes_of(first))
    ours.round()
    second = method.plans(1, ours.last)[0]
    assert method.client_state(first) == "set-0"
    assert method.client_state(second) == "set-1"


def test_one_report_alone_changes_the_set() -> None:
    ours = federation()
    plan = ours.method.plans(0, None)[0]
    payload = ours.worker.visit(encode(plan)).payload
    assert payload is not None
    report = decode(payload, Report)
    assert len(told_norms(report)) == len(ours.method.setting.shapes)
    update = ours.method.alone(report, plan, None, 1.0)
    before = weights(ours.model)
    with torch.no_grad():
        ours.method.apply(ours.model, update)
    changed = {n for n, p in weights(ours.model).items() if not torch.equal(p, before[n])}
    assert changed == set(ours.method.shapes_of(plan))


def test_an_update_that_is_skipped_changes_nothing() -> None:
    ours = federation()
    update, before = ours.round().update, weights(ours.model)
    skipped = replace(update, round=1, values={**update.values, "skipped": 1})
    with pytest.raises(UserError, match="does not fit"):
        ours.worker.deliver(encode(skipped))
    ours.worker.deliver(encode(replace(skipped, tensors={})))
    assert same(weights(ours.model), before)


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"selected": [0, 99]}, "the plan does not name tensors of"),
        ({"selected": list(range(9))}, "the plan names more tensors than the method allows"),
        ({"selection": "x"}, "the plan does not say which set"),
        ({"measure": 1}, "the plan does not say whether norms are measured"),
        ({"more": 1}, "the plan's values are not those due"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_the_client(
    changes: dict[str, Any], failure: str
) -> None:
    ours = federation()
    plan = ours.method.plans(0, None)[0]
    arrival = ours.worker.visit(encode(Plan(0, plan.client, {**plan.values, **changes})))
    assert arrival.payload is None
    assert arrival.failure.startswith(failure)


@pytest.mark.parametrize(
    ("tables", "match"),
    [
        ({"privacy": {"secure_sum": True}}, "^privacy: a secure sum is of the same numbers in"),
        (
            {"privacy": {"protects": "record", "noise": 1.0, "delta": 1e-3, "clip": 1.0}},
            "^privacy.protects: clients of blockllm tell norms",
        ),
        ({"memory": {"cache_inputs": "1MiB"}}, "^memory.cache_inputs: a set of tensors may"),
        ({"memory": {"frozen": "int8"}}, "^memory.frozen: blockllm measures gradients of"),
    ],
)
def test_what_does_not_go_together_is_refused_at_load(tables: dict[str, Any], match: str) -> None:
    told = recipe(CLIENTS, method={"name": "blockllm"}, **tables)
    with pytest.raises(UserError, match=match):
        built(make("llama"), CLIENTS, told)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sparsity": 1.0}, "sparsity is a share"),
        ({"patience": 1}, "patience is at least 2"),
        ({"server_step": 0.0}, "server_step"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        method_options("blockllm", **options)
