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

from fullfed.config import MemoryTable
from fullfed.data.batches import training_batches
from fullfed.federation.client import SubmodelWorker
from fullfed.federation.messages import Plan, Report, Update, decode, encode
from fullfed.federation.states import StatesInMemory
from fullfed.methods.codecs.codec import Change
from fullfed.methods.composition import Composition
from fullfed.methods.fedcybgd import FedCyBGDOptions
from fullfed.methods.step_memory import short
from fullfed.sketch import Purpose, Stream
from fullfed.training.exact import dithered
from fullfed.training.first_order import train
from fullfed.training.layers import find_layers, layer_names
from fullfed.training.memory import held
from fullfed.training.quantised import blank
from methods.test_fedcybgd import data, dense, method_for
from methods.tiny import same, weights
from training.architectures import CAUSAL, make

WORK = {"batch_size": 2, "steps": 3}
LEAN = MemoryTable(optimizer_in_backward=True)


def method_of(model: PreTrainedModel, memory: MemoryTable = LEAN, **options: Any) -> Composition:
    options = {"surrogate": 0.4, **options}
    return method_for(
        model, FedCyBGDOptions(**options), work=WORK, memory=memory, codec=dense("bfloat16")
    )


def sent(method: Composition, model: PreTrainedModel, plan: Plan) -> tuple[bytes, bytes]:
    """The server's two messages to a client without a replica."""
    submodels = method.submodels
    assert submodels is not None
    return encode(submodels.static_weights(model)), encode(submodels.submodel(model, plan))


def weak_client(
    model: PreTrainedModel, static_weights: bytes, method: Composition, **more: Any
) -> SubmodelWorker:
    nothing = blank(type(model), model.config)
    return SubmodelWorker(nothing, method, static_weights, dict(enumerate(data())), **more)


def in_a_replica(model: PreTrainedModel, method: Composition, block: int, dropped: int) -> Report:
    """The visit of client 0 where the whole model is: packed in place, a layer taken out."""
    found = find_layers(model)
    del found[1][dropped]
    parameters = dict(model.named_parameters())
    number = block - (dropped < block)  # of the layer, now that one is gone
    names = layer_names(model)[number]
    own = {n: parameters[n] for n in names}
    exact = dithered(own, Stream(5, Purpose.DITHER, 0, 0))
    before = {n: exact.get(n, p.detach()).clone() for n, p in own.items()}
    local, memory = method.setting.local, method.setting.memory
    batches = training_batches(data()[0], 2, 3, Stream(5, Purpose.BATCHES, 0, 0))
    with held(model, list(own.values()), memory.frozen):
        done = train(model, own, batches, local, memory, exact=exact)
    old = dict(zip(names, method.blocks[block], strict=True))  # the names before it was gone
    change = Change(
        {old[n]: t for n, t in before.items()}, {old[n]: t for n, t in done.exact.items()}
    )
    plan = Plan(0, 0, {"block": block, "dropped": [dropped]})
    encoded = method.codec.encode(change, plan, method.blocks[block])
    loss = short(sum(done.losses) / len(done.losses))
    return Report(0, 0, len(data()[0]), loss, encoded.values, encoded.tensors)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["32", "16"])
@pytest.mark.parametrize("frozen", ["int8", "int4"])
def test_the_report_is_that_of_a_visit_in_a_replica(
    name: str, dtype: torch.dtype, frozen: Any
) -> None:
    model = make(name).to(dtype)
    method = method_of(model, MemoryTable(optimizer_in_backward=True, frozen=frozen))
    plan = Plan(0, 0, {"block": 2, "dropped": [1]})
    static_weights, submodel = sent(method, model, plan)
    arrival = weak_client(model, static_weights, method).visit(encode(plan), submodel)
    whole = in_a_replica(make(name).to(dtype), method, block=2, dropped=1)
    assert arrival.payload == encode(whole), arrival.failure


@pytest.mark.parametrize("outer", [False, True])
def test_messages_hold_what_is_trained_exactly_and_the_dropped_nowhere(outer: bool) -> None:
    model = make("llama")
    method = method_of(model, outer=outer)
    plan = Plan(0, 0, {"block": 3 if outer else 0, "dropped": [1]})
    static_weights, submodel = (decode(message, Update) for message in sent(method, model, plan))
    both = {**static_weights.tensors, **submodel.tensors}
    own = method.blocks[3 if outer else 0]
    parameters = dict(model.named_parameters())
    assert all(torch.equal(submodel.tensors[n], parameters[n]) for n in own)
    assert not set(both) & set(method.blocks[1])
    there = {n for n in both if not n.endswith("/scale") and not n.startswith("buffer/")}
    assert there == set(parameters) - set(method.blocks[1])
    matrices = {n for n in there - set(own) if parameters[n].ndim == 2}
    assert all(both[n].dtype == torch.int8 for n in matrices)
    assert not static_weights.tensors.keys() & submodel.tensors.keys()
    if outer:
        assert all(n.startswith("buffer/") for n in static_weights.tensors)


def test_a_model_without_a_replica_holds_the_messages_tensors_and_no_more() -> None:
    model = make("llama").bfloat16()
    method = method_of(model)
    plan = Plan(0, 0, {"block": 0, "dropped": [1]})
    static_weights, submodel = (decode(message, Update) for message in sent(method, model, plan))
    assert method.submodels is not None
    assembled = method.submodels.assemble(
        blank(type(model), model.config), static_weights, submodel, plan, torch.device("cpu")
    )
    received = {**static_weights.tensors, **submodel.tensors}
    exact = {n: p for n, p in assembled.named_parameters() if p.numel()}
    packed = {n for n in received if n + "/scale" in received}
    assert exact.keys() | packed == {n for n in received if "/" not in n}
    assert not exact.keys() & packed
    own = {n: exact[n] for n in method.blocks[0]}
    assert same(own, {n: p for n, p in model.named_parameters() if n in own})


def test_what_a_client_keeps_is_kept() -> None:
    model = make("llama")
    method = method_of(model)
    plan = Plan(0, 0, {"block": 0, "dropped": [1]})
    static_weights, submodel = sent(method, model, plan)
    states = StatesInMemory()
    client = weak_client(model, static_weights, method, states=states)
    first = client.visit(encode(plan), submodel).payload
    assert {f"codec/{n}" for n in method.blocks[0]} == states.load(0, "block-0", 1).keys()
    again = replace(plan, round=1)
    second = client.visit(encode(again), sent(method, model, again)[1]).payload
    assert first is not None
    assert second is not None
    fresh = weak_client(model, static_weights, method).visit(
        encode(again), sent(method, model, again)[1]
    )
    assert second != fresh.payload


def test_the_model_of_the_server_is_as_it_was() -> None:
    model = make("llama")
    method = method_of(model)
    before = weights(model)
    plan = Plan(0, 0, {"block": 0, "dropped": [1]})
    static_weights, submodel = sent(method, model, plan)
    assert (
        weak_client(model, static_weights, method).visit(encode(plan), submodel).payload is not None
    )
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
        (without, "the submodel does not hold exactly what its plan says"),
        (longer, r"the submodel's 'model.layers.0.input_layernorm.weight' is \(9,\) of"),
        (exactly, "of torch.float32, not"),
    ],
)
def test_a_submodel_that_does_not_fit_fails_the_visit(
    spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]], failure: str
) -> None:
    model = make("llama")
    method = method_of(model)
    plan = Plan(0, 0, {"block": 0, "dropped": [1]})
    static_weights, submodel = sent(method, model, plan)
    update = decode(submodel, Update)
    spoiled = encode(replace(update, tensors=spoil(dict(update.tensors))))
    arrival = weak_client(model, static_weights, method).visit(encode(plan), spoiled)
    assert arrival.payload is None
    assert re.search(failure, arrival.failure)


@pytest.mark.parametrize("values", [{"block": 0, "dropped": []}, {"block": 0}])
def test_a_submodel_of_another_plan_fails_the_visit(values: Any) -> None:
    model = make("llama")
    method = method_of(model)
    plan = Plan(0, 0, {"block": 0, "dropped": [1]})
    static_weights, submodel = sent(method, model, plan)
    client = weak_client(model, static_weights, method)
    assert client.visit(encode(replace(plan, round=1)), submodel).failure
    arrival = client.visit(encode(Plan(0, 0, values)), submodel)
    assert arrival.payload is None
    assert "plan" in arrival.failure
