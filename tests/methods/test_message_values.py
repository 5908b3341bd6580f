"""Every method's messages hold what it makes, and are refused with anything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fullfed.errors import MessageError, UserError
from fullfed.federation.inbox import Arrival, Inbox
from fullfed.federation.messages import Plan, Report, Update, decode, encode
from fullfed.federation.method import VisitError
from fullfed.methods.catalogue import METHODS
from fullfed.methods.composition import Composition
from fullfed.runs.assembly import build_method, choose
from methods.test_compositions import built, recipe
from methods.tiny import same, weights
from training.architectures import make

CODECS: list[dict[str, Any]] = [
    {"name": "dense", "precision": "int8"},
    {"name": "sketch", "coordinates": 24, "seeds": "shared"},
    {"name": "sketch", "coordinates": 24, "basis": "normal"},
    {"name": "sketch", "coordinates": 24, "bits": 2},
    {"name": "topk", "count": 9},
]
OWN: dict[str, dict[str, Any]] = {
    "ferret": {"coordinates": 24},
    "fed-sb": {"rank": 2},
    "flexlora": {"ranks": [1, 2]},
    "fedbpt": {"prompt_tokens": 3, "dimension": 8, "population": 3},
    "fedbuff": {"buffer": 1},
    "fedpeptao": {"prefix_tokens": 2},
    "slora": {"rank": 2, "sparse_rounds": 2},
}
CASES = [(name, None) for name in METHODS] + [("fedavg", codec) for codec in CODECS]

Message = Any


def extra_value(message: Message) -> Message:
    return replace(message, values={**message.values, "more": 1})


def lost_value(message: Message) -> Message:
    return replace(message, values=dict(list(message.values.items())[1:]))


def extra_tensor(message: Message) -> Message:
    return replace(message, tensors={**message.tensors, "more": torch.zeros(1)})


def wider_tensor(message: Message) -> Message:
    """Broadcasting would take a row for a matrix."""
    name, tensor = next(iter(message.tensors.items()))
    return replace(message, tensors={**message.tensors, name: tensor.unsqueeze(0)})


def other_type(message: Message) -> Message:
    name, tensor = next(iter(message.tensors.items()))
    wide = tensor.double() if tensor.is_floating_point() else tensor.float()
    return replace(message, tensors={**message.tensors, name: wide})


SPOILT: list[Callable[[Message], Message]] = [
    *(extra_value, lost_value, extra_tensor, wider_tensor, other_type)
]


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize(("name", "codec"), CASES)
def test_a_message_with_what_nobody_makes_is_refused(
    name: str, codec: dict[str, Any] | None, spoil: Callable[[Message], Message]
) -> None:
    tables = {"method": {"name": name, **OWN.get(name, {})}} | ({"codec": codec} if codec else {})
    if name == "cyclic-ferret":
        tables["codec"] = {"name": "sketch", "coordinates": 24}
    federation = built(make("llama"), 3, recipe(1, **tables))
    method, worker = federation.method, federation.worker
    (plan,) = method.plans(0, None)
    payload = worker.visit(encode(plan)).payload
    assert payload is not None
    report = decode(payload, Report)
    update = method.aggregate([plan], [report], None)
    if can_spoil(plan, spoil):
        arrival = worker.visit(encode(spoil(plan)))
        assert arrival.payload is None
        assert arrival.failure.startswith("the plan")
    if can_spoil(report, spoil):
        inbox = Inbox(method, [plan], worker.replica.model)
        spoilt = Arrival(plan.client, encode(spoil(report)))
        assert list(inbox.in_client_order([spoilt])) == []
        assert inbox.refused[0][1].startswith("the report")
    if can_spoil(update, spoil):
        with pytest.raises(UserError, match="does not fit the model and the method"):
            worker.deliver(encode(spoil(update)))
    worker.deliver(encode(update))


def can_spoil(message: Plan | Report | Update, spoil: Callable[[Message], Message]) -> bool:
    """What is not there cannot be left out or changed."""
    if spoil is lost_value:
        return bool(message.values)
    return spoil not in (wider_tensor, other_type) or bool(message.tensors)


def cyclic() -> Composition:
    """FedCyBGD in two blocks: its updates name them."""
    wanted = recipe(2, method={"name": "fedcybgd", "blocks": 2})
    return build_method(wanted, choose(wanted), make("llama"), 2)


@pytest.mark.parametrize("blocks", [None, [], [1, 0], [0, 0], [0, 2], [True, 1], "01", [0.0, 1]])
def test_an_update_that_does_not_name_its_blocks_is_refused(blocks: Any) -> None:
    update = Update(0, {"server_step": 1.0, "clients": [0], "blocks": blocks})
    with pytest.raises(MessageError, match="the update"):
        cyclic().check_values(update)


@pytest.mark.parametrize("clients", [None, 3, [-1], [2**32], [0.0], ["0"], [[0]]])
def test_an_update_that_does_not_name_clients_is_refused(clients: Any) -> None:
    update = Update(0, {"clients": clients, "skipped": 1})
    cyclic().check_values(replace(update, values={"clients": [0], "skipped": 1}))
    with pytest.raises(MessageError, match="the update does not name clients"):
        cyclic().check_values(update)


def test_a_visit_error_names_what_a_plan_has_too_much() -> None:
    method, model = cyclic(), make("llama")
    plan = Plan(0, 0, {"block": 0, "more": 1})
    with pytest.raises(VisitError, match="the plan's values are not those due: there is no 'more'"):
        method.train(model, plan, [], None)


@pytest.mark.parametrize("step", [0.5, 0.0, -1.0, 1e100, 10**400])
@pytest.mark.parametrize("name", ["fedavg", "fedkseed", "ferret"])
def test_an_update_with_a_step_that_the_rule_cannot_have_chosen_is_refused(
    name: str, step: float
) -> None:
    federation = built(make("llama"), 2, recipe(2, method={"name": name, **OWN.get(name, {})}))
    result = federation.round()
    values = {**result.update.values, "server_step": step}
    update = replace(result.update, round=1, values=values)
    if name == "ferret" and step == 0.5:
        federation.method.check_update(update)
        return
    before = weights(federation.model)
    with pytest.raises(UserError, match="does not fit the model and the method"):
        federation.worker.replica.apply(update)
    assert same(weights(federation.model), before)
