"""EmbracingFL by hand: who trains what, whose mean a layer becomes, what is refused."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fullfed.data.batches import training_batches
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Report, decode, encode, number
from fullfed.methods.embracing_fl import EmbracingFLOptions, build, dealt
from fullfed.methods.setting import Setting
from fullfed.methods.suffixes import BySegment, SuffixComposition, segments_of, suffix
from fullfed.randomness import Purpose, Stream
from fullfed.training.loss import answer_loss
from methods.test_compositions import built, data, recipe
from methods.tiny import Federation, flat, method_options, same, setting, tiny_model, weights
from training.architectures import make

THREE = torch.Size([3])
NORMAL = {"name": "sketch", "coordinates": 9, "basis": "normal"}


def by_hand(clients: int = 4, **changes: Any) -> Setting:
    """A model of an embedding, three layers and a norm, of three numbers each."""
    names = ["embed", "0.a", "1.a", "2.a", "norm"]
    layers = (("0.a",), ("1.a",), ("2.a",))
    shapes = dict.fromkeys(names, THREE)
    return setting(tiny_model(), clients=clients, shapes=shapes, layers=layers, **changes)


@pytest.mark.parametrize(
    ("share", "names"),
    [
        (1.0, ["embed", "0.a", "1.a", "2.a", "norm"]),
        (0.8, ["0.a", "1.a", "2.a", "norm"]),
        (0.79, ["1.a", "2.a", "norm"]),
        (0.4, ["2.a", "norm"]),
        (0.2, ["norm"]),
        (0.01, ["norm"]),
    ],
)
def test_a_suffix_is_the_longest_that_fits(share: float, names: list[str]) -> None:
    assert list(suffix(by_hand(), share)) == names


def test_without_anything_after_the_layers_the_last_of_them_is_the_least() -> None:
    tied = by_hand()
    tied = replace(tied, shapes={n: s for n, s in tied.shapes.items() if n != "norm"})
    assert list(suffix(tied, 0.01)) == ["2.a"]


def test_segments_are_what_one_suffix_has_more_than_the_next() -> None:
    parts = segments_of([suffix(by_hand(), share) for share in (1.0, 0.4, 0.2)])
    assert [list(part) for part in parts] == [["embed", "0.a", "1.a"], ["2.a"], ["norm"]]


def test_classes_are_dealt_by_the_seed_in_their_shares() -> None:
    shares = {"strong": 0.25, "weak": 0.5}
    found = dealt(3, 20, shares)
    assert Counter(found) == {"strong": 5, "weak": 10, None: 5}
    assert found == dealt(3, 20, shares) != dealt(4, 20, shares)


def test_each_layer_is_the_mean_of_those_who_trained_it() -> None:
    """Strong: 10 samples, moderate: 20, weak: 30; numbers of three."""
    made = by_hand(clients=3)
    method = build(
        made,
        EmbracingFLOptions({"s": 1.0, "m": 0.4, "w": 0.2}, {"s": 1 / 3, "m": 1 / 3, "w": 1 / 3}),
    )
    plans = method.plans(0, None)
    sent = {
        0: {"embed": [1.0, 2.0, 3.0], "0.a": [4.0, 5.0, 6.0], "1.a": [7.0, 8.0, 9.0]},
        1: {"2.a": [1.0, 0.0, -1.0]},
        2: {"norm": [3.0, 6.0, 9.0]},
    }
    reports, rows = [], dict[str, list[tuple[int, np.ndarray[Any, Any]]]]()
    for plan in sorted(plans, key=lambda p: p.client):
        first = int(number(plan, "block"))
        factor, samples = 10.0**first, 10 * (1 + first)
        tensors = {}
        for segment in range(first, 3):
            for name, values in sent[segment].items():
                own = factor * np.array(values)
                tensors[f"{segment}/{name}"] = torch.tensor(own, dtype=torch.float32)
                rows.setdefault(name, []).append((samples, own))
        reports.append(Report(0, plan.client, samples, 0.0, {}, tensors))
        method.check(reports[-1], plan)
    update = method.aggregate(plans, reports, None)
    assert update.values["blocks"] == [0, 1, 2]
    assert (len(rows["embed"]), len(rows["2.a"]), len(rows["norm"])) == (1, 2, 3)
    for segment, names in sent.items():
        for name in names:
            own = rows[name]
            wanted = sum(n * x for n, x in own) / sum(n for n, _ in own)
            found = update.tensors[f"{segment}/{name}"].double().numpy()
            np.testing.assert_allclose(found, wanted, rtol=1e-6)


def federation(codec: dict[str, Any] | None = None, clients: int = 6, **method: Any) -> Federation:
    tables: dict[str, Any] = {"codec": codec} if codec else {}
    shares = {"strong": 1 / 3, "moderate": 1 / 3, "weak": 1 / 3}
    table = {"name": "embracing-fl", "clients": shares, **method}
    return built(make("llama"), clients, recipe(clients, method=table, **tables))


def test_a_round_is_training_by_torch_and_a_mean_a_layer_in_float64() -> None:
    ours = federation()
    before = copy.deepcopy(ours.model)
    method = ours.method
    assert isinstance(method, SuffixComposition)
    assert isinstance(method.codec, BySegment)
    sizes, total = [len(own) for own in method.blocks], dict[str, Tensor]()
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 3
    weight = Counter[str]()
    for plan in method.plans(0, None):
        alone = copy.deepcopy(before)
        own = {n: alone.get_parameter(n) for n in method.blocks[int(number(plan, "block"))]}
        optimizer = torch.optim.AdamW(own.values(), lr=0.01, weight_decay=0.0)
        stream = Stream(5, Purpose.BATCHES, 0, plan.client)
        examples = data(6)[plan.client]
        for batch in training_batches(examples, 4, 2, stream):
            alone.zero_grad()
            answer_loss(alone, batch).backward()
            torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
            optimizer.step()
        for name, p in own.items():
            total[name] = total.get(name, torch.zeros(())) + len(examples) * p.detach().double()
            weight[name] += len(examples)
    result = ours.round()
    assert len(result.aggregated) == 6
    after = weights(ours.model)
    wanted = {n: total[n] / weight[n] if n in total else p for n, p in weights(before).items()}
    assert set(total) == set(after), "somebody trains everything"
    torch.testing.assert_close(flat(after), flat(wanted), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "codec",
    [
        {"name": "sketch", "coordinates": 24},
        {"name": "sketch", "coordinates": 24, "seeds": "shared"},
        {"name": "topk", "count": 9},
        {"name": "dense", "precision": "int8", "error_feedback": True},
    ],
)
def test_it_works_with_any_codec(codec: dict[str, Any]) -> None:
    step = {"server_step": 0.1} if codec["name"] == "sketch" else {}
    ours, twin = federation(codec, **step), federation(codec, **step)
    for _ in range(2):
        before = weights(ours.model)
        result = ours.round()
        assert len(result.aggregated) == 6
        twin.worker.deliver(encode(result.update))
        changed = {n for n, p in weights(ours.model).items() if not torch.equal(p, before[n])}
        assert len(changed) > 0.5 * len(before)
        ours.method.codec.apply(before, result.update, ours.method.setting.shapes)
        assert same(before, weights(ours.model)), "as its codec applies it to the whole model"
    assert same(weights(ours.model), weights(twin.model))


def test_a_report_on_more_than_the_plan_names_is_refused() -> None:
    ours = federation()
    plans = {int(number(p, "block")): p for p in ours.method.plans(0, None)}
    payload = ours.worker.visit(encode(plans[0])).payload
    assert payload is not None
    whole = decode(payload, Report)
    weak = replace(whole, client=plans[2].client)
    with pytest.raises(MessageError, match="tensors of a part that its plan does not name"):
        ours.method.check(weak, plans[2])


def test_one_report_alone_changes_its_own_layers() -> None:
    ours = federation()
    plan = next(p for p in ours.method.plans(0, None) if number(p, "block") == 1)
    payload = ours.worker.visit(encode(plan)).payload
    assert payload is not None
    update = ours.method.alone(decode(payload, Report), plan, None, 1.0)
    before = weights(ours.model)
    ours.worker.replica.apply(update)
    changed = {n for n, p in weights(ours.model).items() if not torch.equal(p, before[n])}
    assert changed == set(ours.method.blocks[1])


def test_who_is_in_no_class_takes_no_part() -> None:
    wanted = recipe(2, method={"name": "embracing-fl", "clients": {"strong": 0.5}})
    ours = built(make("llama"), 4, wanted)
    cohorts = {plan.client for round in range(20) for plan in ours.method.plans(round, None)}
    assert len(cohorts) == 2
    with pytest.raises(UserError, match="3 clients a round, and only 2 are in a class"):
        built(make("llama"), 4, recipe(3, **{"method": dict(wanted.method)})).method.plans(0, None)


@pytest.mark.parametrize(
    ("tables", "match"),
    [
        ({"codec": {"name": "sketch", "coordinates": 9}}, "^method.server_step: the automatic"),
        (
            {"codec": {"name": "sketch", "coordinates": 9, "basis": "normal"}, "step": 1.0},
            "^codec:",
        ),
        ({"memory": {"frozen": "int8"}}, "^memory.frozen: what a visit does not train waits"),
        ({"memory": {"cache_inputs": "1MiB"}}, "^memory.cache_inputs: what comes into"),
        ({"trainer": {"name": "transformers"}}, "^trainer: clients of embracing-fl train in a way"),
        ({"aggregation": {"name": "trimmed-mean"}}, "^aggregation.name: a trimmed mean"),
        ({"privacy": {"secure_sum": True}}, "^privacy: a secure sum is of clients that train the"),
    ],
)
def test_what_does_not_go_together_is_refused_at_load(tables: dict[str, Any], match: str) -> None:
    step = {"server_step": tables.pop("step")} if "step" in tables else {}
    wanted = recipe(3, method={"name": "embracing-fl", **step}, **tables)
    with pytest.raises(UserError, match=match):
        built(make("llama"), 4, wanted)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"memory": {"strong": 1.5}}, "above 0 and at most 1"),
        ({"clients": {"tiny": 0.5}}, "classes that memory names"),
        ({"clients": {"strong": 0.9, "weak": 0.2}}, "together are above 0 and at most 1"),
        ({"clients": {}}, "together are above 0 and at most 1"),
        ({"server_step": -1.0}, "server_step"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        method_options("embracing-fl", **options)


def test_a_plan_must_name_a_suffix_there_is() -> None:
    ours = federation()
    arrival = ours.worker.visit(encode(Plan(0, 0, {"block": 3})))
    assert arrival.payload is None
    assert "block 3 of 3" in arrival.failure
