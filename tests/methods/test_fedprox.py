"""FedProx is FedAvg whose clients are pulled back to where the round began."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fullfed.config import LocalTable
from fullfed.data.batches import training_batches
from fullfed.errors import UserError
from fullfed.methods import fedprox
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

WORK = {"batch_size": 4, "steps": 6}
DATA = [samples(9, seed=0), samples(4, seed=1)]


def federate(
    mu: float,
    clients: int = 1,
    local: LocalTable | None = None,
    dtype: torch.dtype = torch.float32,
) -> Federation:
    model = tiny_model().to(dtype)
    made = setting(model, clients=clients, work=WORK, local=local or sgd(0.3))
    options = fedprox.FedProxOptions(mu)
    return Federation(model, fedprox.build(made, options), DATA[:clients])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (sgd(0.3), lambda p: torch.optim.SGD(p, lr=0.3)),
        (sgd(0.3, clip=0.1), lambda p: torch.optim.SGD(p, lr=0.3)),
        (adamw(0.01), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0)),
    ],
)
def test_a_client_descends_the_loss_and_the_distance(ours: LocalTable, theirs: Any) -> None:
    """With the proximal term's gradient, mu (w - w_r), added by hand."""
    federation = federate(0.7, local=ours)
    alone = copy.deepcopy(federation.model)
    for round in range(2):
        started = weights(alone)
        federation.round()
        optimizer = theirs(alone.parameters())
        for batch in training_batches(DATA[0], 4, 6, Stream(5, Purpose.BATCHES, round, 0)):
            optimizer.zero_grad()
            answer_loss(alone, batch).backward()
            for name, p in alone.named_parameters():
                assert p.grad is not None
                p.grad += 0.7 * (p.detach() - started[name])
            if ours.clip is not None:
                torch.nn.utils.clip_grad_norm_(alone.parameters(), ours.clip)
            optimizer.step()
        torch.testing.assert_close(
            flat(weights(federation.model)), flat(weights(alone)), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_the_term_it_is_fedavg_bit_for_bit(dtype: torch.dtype) -> None:
    free = federate(0.0, clients=2, dtype=dtype)
    model = tiny_model().to(dtype)
    fedavg = Federation(model, make_fedavg(setting(model, clients=2, work=WORK)), DATA)
    for _ in range(2):
        assert free.round().loss == fedavg.round().loss
        assert same(weights(free.model), weights(model))


def test_the_stronger_the_term_the_nearer_a_client_stays() -> None:
    base = flat(weights(tiny_model()))
    moved = []
    for mu in (0.0, 0.3, 1.0, 3.0):
        federation = federate(mu)
        federation.round()
        moved.append(float((flat(weights(federation.model)) - base).norm()))
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < moved[0] / 2


def test_the_reported_loss_is_that_of_the_data() -> None:
    """On one batch again and again, where the last step's loss with the term would be larger."""
    federation = federate(3.0)
    batch = DATA[1]  # four samples: every batch is all of them
    plan = federation.method.plans(0, None)[0]
    reported = federation.method.train(federation.model, plan, batch, None).report.loss
    alone, losses = tiny_model(), []
    started = weights(alone)
    for same_batch in training_batches(batch, 4, 6, Stream(5, Purpose.BATCHES, 0, 0)):
        alone.zero_grad()
        loss = answer_loss(alone, same_batch)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for name, p in alone.named_parameters():
                assert p.grad is not None
                p -= 0.3 * (p.grad + 3.0 * (p - started[name]))
    assert reported == pytest.approx(sum(losses) / 6, rel=1e-5)


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
def test_a_strength_that_makes_no_sense_is_refused(mu: float) -> None:
    with pytest.raises(UserError, match=r"^method: mu is a number, at least 0\.$"):
        method_options("fedprox", mu=mu)
