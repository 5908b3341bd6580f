"""FLASC by hand: masks, torch's AdamW at the server, and nothing of a visit that stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from fullfed.data.batches import training_batches
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.methods.codecs.largest import largest_alone
from fullfed.methods.flasc import FlascOptions
from fullfed.sketch import Purpose, Stream
from fullfed.training.loss import answer_loss
from methods.lora import SEED, federate, reports, three_clients
from methods.tiny import method_options, same, tiny_model, weights

RATE, STEPS = 0.5, 4
OPTIONS = FlascOptions(rank=2, alpha=3.0, up=0.3, down=0.4, learning_rate=0.02, weight_decay=0.1)


def largest(flat: Tensor, share: float) -> Tensor:
    """The vector with zeros but at its largest numbers."""
    kept = torch.zeros_like(flat)
    places = flat.abs().topk(int(share * flat.numel())).indices
    kept[places] = flat[places]
    return kept


def flat_of(model: Any) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in adapters(model).values()])


def adapters(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def visit(
    model: Any, start: Tensor, examples: list[TokenizedExample], round: int, n: int
) -> Tensor:
    """The adapters after a client's steps of SGD, all numbers trained."""
    alone = copy.deepcopy(model)
    own = adapters(alone)
    torch.nn.utils.vector_to_parameters(start.float(), own.values())
    optimizer = torch.optim.SGD(own.values(), lr=RATE)
    for batch in training_batches(examples, 4, STEPS, Stream(SEED, Purpose.BATCHES, round, n)):
        optimizer.zero_grad()
        answer_loss(alone, batch).backward()
        optimizer.step()
    return flat_of(alone)


def test_rounds_are_the_papers() -> None:
    model, data = tiny_model(), three_clients()
    work = {"batch_size": 4, "steps": STEPS, "learning_rate": RATE}
    federation = federate("flasc", model, data, OPTIONS, work=work)
    alone = copy.deepcopy(model)
    server = torch.nn.Parameter(flat_of(alone))
    optimizer = torch.optim.AdamW([server], lr=0.02, weight_decay=0.1)
    for round in range(3):
        start = largest(server.detach(), OPTIONS.down)
        changes = [visit(alone, start, own, round, n) - start for n, own in enumerate(data)]
        sent = [largest(change, OPTIONS.up) for change in changes]
        counts = [len(own) for own in data]
        mean = sum(c * s for c, s in zip(counts, sent, strict=True)) / sum(counts)
        server.grad = -mean
        optimizer.step()
        federation.round()
        torch.testing.assert_close(flat_of(model), server.detach(), rtol=0, atol=2e-5)


def test_a_visit_leaves_the_replica_as_it_was() -> None:
    model = tiny_model()
    federation = federate("flasc", model, three_clients(), OPTIONS)
    federation.round()
    before = weights(model)
    for report in reports(federation):
        assert len(report.tensors["values"]) <= 0.3 * federation.method.setting.elements
    assert same(weights(model), before)


def test_what_does_not_begin_is_put_back_whatever_happens() -> None:
    tensors = [torch.tensor([3.0, -0.0, 1.0]), torch.tensor([[-2.0], [float("inf")]])]
    before = [t.clone() for t in tensors]
    with largest_alone(tensors, 0.4):
        assert tensors[0].tolist() == [3.0, 0.0, 0.0]
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    with pytest.raises(KeyError), largest_alone(tensors, 0.4):
        raise KeyError
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"up": 0.0}, "up is a share, above 0 and at most 1"),
        ({"down": 1.5}, "down is a share"),
        ({"learning_rate": -1.0}, "learning_rate is a positive number"),
        ({"weight_decay": 1.0}, "weight_decay is a number, at least 0 and below 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        method_options("flasc", **options)
