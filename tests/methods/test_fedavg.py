"""FedAvg is local training where there is one client, else the mean of several, weighted."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from fullfed.config import LocalTable
from fullfed.data.batches import collate, training_batches
from fullfed.errors import UserError
from fullfed.federation.client import Worker
from fullfed.federation.messages import Plan, Report, Update, decode, encode
from fullfed.federation.replica import Replica, Rounding
from fullfed.sketch import Purpose, Stream
from fullfed.training.loss import answer_loss
from methods.tiny import (
    Federation,
    adamw,
    flat,
    make_fedavg,
    method_options,
    same,
    samples,
    setting,
    sgd,
    tiny_model,
    weights,
)


def batches(client: int, round: int, steps: int) -> Any:
    """The batches of a client's visit, of the data that ``clients`` gives it."""
    stream = Stream(5, Purpose.BATCHES, round, client)
    return training_batches(data()[client], 4, steps, stream)


def data() -> list[list[Any]]:
    """Three clients with 9, 4 and 1 samples."""
    return [samples(9, seed=0), samples(4, seed=1), samples(1, seed=2)]


SGD = {"lr": 0.3}
ADAMW = {"lr": 0.01, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("ours", "theirs", "clip"),
    [
        (sgd(0.3), lambda p: torch.optim.SGD(p, lr=0.3), None),
        (
            sgd(0.3, momentum=0.9, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=0.1),
            None,
        ),
        (sgd(0.3, clip=0.1), lambda p: torch.optim.SGD(p, lr=0.3), 0.1),
        (
            adamw(0.01),
            lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0),
            None,
        ),
        (
            adamw(0.01, weight_decay=0.2, clip=0.1),
            lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.2),
            0.1,
        ),
    ],
)
@pytest.mark.parametrize("steps", [1, 5])
def test_one_client_is_torchs_optimizer_to_the_last_bit(
    ours: LocalTable, theirs: Any, clip: float | None, steps: int
) -> None:
    model = tiny_model()
    alone = copy.deepcopy(model)
    work = {"batch_size": 4, "steps": steps}
    federation = Federation(model, make_fedavg(setting(model, local=ours, work=work)), data()[:1])
    for round in range(2):
        federation.round()
        optimizer = theirs(alone.parameters())
        for batch in batches(0, round, steps):
            optimizer.zero_grad()
            answer_loss(alone, batch).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(alone.parameters(), clip)
            optimizer.step()
        assert same(weights(model), weights(alone))


def trained(client: int) -> Tensor:
    """The weights that a client comes to alone, in one row."""
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for batch in batches(client, 0, 2):
        optimizer.zero_grad()
        answer_loss(model, batch).backward()
        optimizer.step()
    return flat(weights(model))


def three(
    model: LlamaForCausalLM,
    weights: str = "samples",
    precision: str = "float32",
    **options: Any,
) -> Federation:
    """Three clients who take two steps each."""
    work = {"batch_size": 4, "steps": 2}
    codec = {"name": "dense", "precision": precision}
    made = setting(model, clients=3, work=work, weights=weights, codec=codec)
    return Federation(model, make_fedavg(made, **options), data())


@pytest.mark.parametrize(
    ("rule", "shares"), [("samples", (9 / 14, 4 / 14, 1 / 14)), ("equal", (1 / 3,) * 3)]
)
@pytest.mark.parametrize("step", ["auto", 1.0, 0.25, 1.5])
def test_the_model_goes_so_far_towards_the_weighted_mean(
    rule: str, shares: tuple[float, ...], step: Any
) -> None:
    model = tiny_model()
    before = flat(weights(model))
    three(model, rule, server_step=step).round()
    mean = sum(
        (share * trained(client) for client, share in enumerate(shares)), torch.zeros(before.shape)
    )
    expected = before + (1.0 if step == "auto" else step) * (mean - before)
    torch.testing.assert_close(flat(weights(model)), expected, rtol=1e-5, atol=1e-6)


def test_sending_16_bits_halves_the_bytes_both_ways() -> None:
    full, half = three(tiny_model()), three(tiny_model(), precision="bfloat16")
    in_full, in_half = full.round(), half.round()
    d = full.method.setting.elements
    for client in range(3):
        # The headers differ by the letters of "F32" and "BF16" and by what aligns them.
        assert abs(in_full.up[client] - in_half.up[client] - 2 * d) < 64
    saved = len(encode(in_full.update)) - len(encode(in_half.update))
    assert abs(saved - 2 * d) < 64


def test_in_16_bits_the_change_is_what_is_rounded() -> None:
    model = tiny_model()
    before = weights(model)
    made = setting(model, codec={"name": "dense", "precision": "bfloat16"})
    federation = Federation(model, make_fedavg(made), data()[:1])
    federation.round()
    exact = tiny_model()
    Federation(exact, make_fedavg(setting(exact)), data()[:1]).round()
    for name, tensor in weights(model).items():
        change = (weights(exact)[name] - before[name]).bfloat16().float()
        assert torch.equal(tensor, before[name] + change)


def test_a_model_of_16_bits_is_trained_as_a_float32_copy_that_it_follows() -> None:
    model = tiny_model().bfloat16()
    alone = copy.deepcopy(model)
    work = {"batch_size": 4, "steps": 3}
    federation = Federation(model, make_fedavg(setting(model, work=work)), data()[:1])
    exact = {name: value.clone() for name, value in federation.worker.replica.exact.items()}
    federation.round()
    optimizer = torch.optim.SGD(exact.values(), lr=0.3)
    for batch in batches(0, 0, 3):
        answer_loss(alone, batch).backward()
        for name, p in alone.named_parameters():
            exact[name].grad, p.grad = p.grad.float(), None
        optimizer.step()
        for name, p in alone.named_parameters():
            p.data.copy_(exact[name])
    assert same(weights(model), weights(alone))
    assert same(dict(federation.worker.replica.exact), exact)


def test_training_in_16_bits_gets_on_where_steps_are_below_their_precision() -> None:
    """A checkpoint on bfloat16's grid; a round of AdamW moves a weight of 0.02 by 4e-5, and half of
    what bfloat16 tells apart there is 6e-5. The loss is of the model as clients see it, and as far
    as the chance of so few weights allows; from weights on the grid it falls by a fiftieth."""
    gains = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model().bfloat16().to(dtype)
        made = setting(model, work={"batch_size": 4, "steps": 4}, local=adamw(1e-5, clip=None))
        federation = Federation(model, make_fedavg(made), data()[:1])
        before = loss_in_float32(model)
        for _ in range(3):
            federation.round()
        gains[dtype] = before - loss_in_float32(model)
    assert gains[torch.float32] > 0
    assert gains[torch.bfloat16] == pytest.approx(gains[torch.float32], rel=0.5)


def loss_in_float32(model: LlamaForCausalLM) -> float:
    with torch.no_grad():
        return float(answer_loss(copy.deepcopy(model).float(), collate(data()[0])))


def test_replicas_that_apply_the_same_bytes_are_equal_bit_for_bit() -> None:
    federation, other = three(tiny_model()), three(tiny_model())
    for _ in range(3):
        other.worker.deliver(encode(federation.round().update))
        assert same(weights(federation.model), weights(other.model))


def test_an_update_says_how_far_it_goes() -> None:
    update = three(tiny_model(), server_step=0.5).round().update
    assert update.values == {"server_step": 0.5}
    assert decode(encode(update), Update).round == 0


def test_a_report_is_the_trained_weights() -> None:
    federation = three(tiny_model())
    payload = federation.worker.visit(encode(federation.method.plans(0, None)[1])).payload
    assert payload is not None
    report = decode(payload, Report)
    assert torch.equal(flat(dict(report.tensors)).sort().values, trained(1).sort().values)
    assert report.samples == 4


@pytest.mark.parametrize("step", [0, -1.0, float("nan"), float("inf")])
def test_a_step_that_leads_nowhere_is_refused(step: float) -> None:
    with pytest.raises(UserError, match=r"^method: server_step is a positive number or 'auto'\.$"):
        method_options("fedavg", server_step=step)


def test_visits_without_exact_weights_begin_at_others_each() -> None:
    """At a rate of next to nothing a report holds the numbers that its visit began with."""
    model = tiny_model().bfloat16()
    method = make_fedavg(setting(model, clients=2, local=sgd(1e-30)))
    worker = Worker(Replica(model, method, Rounding("stochastic")), method, dict(enumerate(data())))
    began = []
    for round, client in ((0, 0), (0, 1), (1, 0)):
        payload = worker.visit(encode(Plan(round, client))).payload
        began.append(decode(payload or b"", Report).tensors)
    for sent in began:
        for name, parameter in model.named_parameters():
            assert torch.equal(sent[name].bfloat16(), parameter)
    for one, other in itertools.combinations(began, 2):
        assert not same(dict(one), dict(other))
