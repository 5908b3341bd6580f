"""A client without a replica trains from messages alone, and reports what one with it would."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import training_batches
from fullfed.federation.messages import Plan, Report, Update, decode, encode
from fullfed.federation.states import StatesInMemory
from fullfed.federation.worker import Guest
from fullfed.methods.codecs import Change
from fullfed.methods.composition import Composition
from fullfed.methods.fedcybgd import FedCyBGDOptions
from fullfed.methods.setting import LocalWork
from fullfed.sketch import Purpose, Stream
from fullfed.training.assembled import blank
from fullfed.training.first_order import FirstOrder
from fullfed.training.layers import find_layers, layer_names
from fullfed.training.memory import Memory, held
from methods.test_fedcybgd import data, method_for
from methods.tiny import same, weights
from training.architectures import CAUSAL, make

WORK = LocalWork(batch_size=2, steps=3)
LEAN = FirstOrder("adamw", 0.01, memory=Memory(optimizer_in_backward=True))


def method_of(model: PreTrainedModel, optimizer: FirstOrder = LEAN, **options: Any) -> Composition:
    known: dict[str, Any] = {"precision": "bfloat16", "surrogate": 0.4}
    return method_for(model, FedCyBGDOptions(**(known | options)), optimizer=optimizer, work=WORK)


def sent(method: Composition, model: PreTrainedModel, plan: Plan) -> tuple[bytes, bytes]:
    """The server's two messages to a client without a replica."""
    handout = method.handout(model, plan)
    assert handout is not None
    return encode(method.equipment(model)), encode(handout)


def guest_of(model: PreTrainedModel, equipment: bytes, method: Composition, **more: Any) -> Guest:
    nothing = blank(type(model), model.config)
    return Guest(nothing, method, equipment, dict(enumerate(data())), **more)


def in_a_replica(
    model: PreTrainedModel, method: Composition, optimizer: FirstOrder, block: int, dropped: int
) -> Report:
    """The visit of client 0 where the whole model is: packed in place, a layer taken out."""
    found = find_layers(model)
    assert found is not None
    del found[1][dropped]
    parameters = dict(model.named_parameters())
    number = block - (dropped < block)  # of the layer, now that one is gone
    names = layer_names(model)[number]
    own = {n: parameters[n] for n in names}
    before = {n: p.detach().clone() for n, p in own.items()}
    memory = optimizer.memory
    batches = training_batches(data()[0], 2, 3, Stream(5, Purpose.BATCHES, 0, 0))
    with held(model, list(own.values()), memory):
        stepper = optimizer.stepper(own, {})
        losses = optimizer.improve(model, list(own.values()), batches, stepper=stepper)
    old = dict(zip(names, method.parts[block], strict=True))  # the names before it was gone
    change = Change(
        {old[n]: t for n, t in before.items()}, {old[n]: t for n, t in stepper.masters.items()}
    )
    plan = Plan(0, 0, {"block": block, "dropped": [dropped]})
    payload = method.codec.encode(change, plan)
    loss = sum(losses) / len(losses)
    return Report(0, 0, len(data()[0]), loss, payload.values, payload.tensors)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["32", "16"])
@pytest.mark.parametrize("frozen", ["int8", "int4"])
def test_the_report_is_that_of_a_visit_in_a_replica(
    name: str, dtype: torch.dtype, frozen: Any
) -> None:
    model = make(name).to(dtype)
    optimizer = replace(LEAN, memory=Memory(optimizer_in_backward=True, frozen=frozen))
    method = method_of(model, optimizer)
    plan = Plan(0, 0, {"block": 2, "dropped": [1]})
    equipment, handout = sent(method, model, plan)
    arrival = guest_of(model, equipment, method).visit(encode(plan), handout)
    whole = in_a_replica(make(name).to(dtype), method, optimizer, block=2, dropped=1)
    assert arrival.payload == encode(whole), arrival.failure


@pytest.mark.parametrize("outer", [False, True])
def test_messages_hold_what_is_trained_exactly_and_the_dropped_nowhere(outer: bool) -> None:
    model = make("llama")
    method = method_of(model, outer=outer)
    plan = Plan(0, 0, {"block": 3 if outer else 0, "dropped": [1]})
    equipment, handout = (decode(message, Update) for message in sent(method, model, plan))
    both = {**equipment.tensors, **handout.tensors}
    own = method.parts[3 if outer else 0]
    parameters = dict(model.named_parameters())
    assert all(torch.equal(handout.tensors[n], parameters[n]) for n in own)
    assert not set(both) & set(method.parts[1])
    there = {n for n in both if not n.endswith("/scale") and not n.startswith("buffer/")}
    assert there == set(parameters) - set(method.parts[1])
    matrices = {n for n in there - set(own) if parameters[n].ndim == 2}
    assert all(both[n].dtype == torch.int8 for n in matrices)
    assert not equipment.tensors.keys() & handout.tensors.keys()
    if outer:
        assert all(n.startswith("buffer/") for n in equipment.tensors)


def test_a_model_without_a_replica_holds_the_messages_tensors_and_no_more() -> None:
    model = make("llama").bfloat16()
    method = method_of(model)
    plan = Plan(0, 0, {"block": 0, "dropped": [1]})
    equipment, handout = (decode(message, Update) for message in sent(method, model, plan))
    assembled = method.assembled(
        blank(type(model), model.config), equipment, handout, plan, torch.device("cpu")
    )
    received = {**equipment.tensors, **handout.tensors}
    exact = {n: p for n, p in assembled.named_parameters() if p.numel()}
    packed = {n for n in received if n + "/scale" in received}
    assert exact.keys() | packed == {n for n in received if "/" not in n}
    assert not exact.keys() & packed
    own = {n: exact[n] for n in method.parts[0]}
    assert same(own, {n: p for n, p in model.named_parameters() if n in own})


def test_what_a_client_keeps_is_kept() -> None:
    model = make("llama")
    method = method_of(model)
    plan = Plan(0, 0, {"block": 0, "dropped": [1]})
    equipment, handout = sent(method, model, plan)
    states = StatesInMemory()
    guest = guest_of(model, equipment, method, states=states)
    first = guest.visit(encode(plan), handout).payload
    assert {f"codec/{n}" for n in method.parts[0]} == states.load(0, "block-0", 1).keys()
    again = replace(plan, round=1)
    second = guest.visit(encode(again), sent(method, model, again)[1]).payload
    assert first is not None
    assert second is not None
    fresh = guest_of(model, equipment, method).visit(encode(again), sent(method, model, again)[1])
    assert second != fresh.payload


def test_the_model_of_the_server_is_as_it_was() -> None:
    model = make("llama")
    method = method_of(model)
    before = weights(model)
    plan = Plan(0, 0, {"block": 0, "dropped": [1]})
    equipment, handout = sent(method, model, plan)
    assert guest_of(model, equipment, method).visit(encode(plan), handout).payload is not None
    assert same(weights(model), before)


def without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict([*tensors.items()][1:])


def longer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "model.layers.0.input_layernorm.weight"
    return {**tensors, name: torch.ones(9)}


def exactly(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.float() for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("spoil", "failure"),
    [
        (without, "the surrogate does not hold exactly what its plan says"),
        (longer, r"the surrogate's 'model.layers.0.input_layernorm.weight' is \(9,\) of"),
        (exactly, "of torch.float32, not"),
    ],
)
def test_a_handout_that_does_not_fit_fails_the_visit(
    spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]], failure: str
) -> None:
    model = make("llama")
    method = method_of(model)
    plan = Plan(0, 0, {"block": 0, "dropped": [1]})
    equipment, handout = sent(method, model, plan)
    update = decode(handout, Update)
    spoiled = encode(replace(update, tensors=spoil(dict(update.tensors))))
    arrival = guest_of(model, equipment, method).visit(encode(plan), spoiled)
    assert arrival.payload is None
    assert re.search(failure, arrival.failure)


@pytest.mark.parametrize("values", [{"block": 0, "dropped": []}, {"block": 0}])
def test_a_handout_of_another_plan_fails_the_visit(values: Any) -> None:
    model = make("llama")
    method = method_of(model)
    plan = Plan(0, 0, {"block": 0, "dropped": [1]})
    equipment, handout = sent(method, model, plan)
    guest = guest_of(model, equipment, method)
    assert guest.visit(encode(replace(plan, round=1)), handout).failure
    arrival = guest.visit(encode(Plan(0, 0, values)), handout)
    assert arrival.payload is None
    assert "plan" in arrival.failure
