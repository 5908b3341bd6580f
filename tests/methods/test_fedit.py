"""FedIT is PEFT's training where there is one client, else the mean of each factor."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from fullfed.data.batches import Batch, training_batches
from fullfed.federation.messages import Plan, Report
from fullfed.methods.aggregation import WeightedMean
from fullfed.methods.codecs.dense import Dense
from fullfed.methods.codecs.stacked import Stacked, product
from fullfed.methods.scopes import A, B
from fullfed.sketch import Purpose, Stream
from fullfed.training.loss import answer_loss
from methods.lora import (
    OPTIONS,
    SEED,
    effective,
    federate,
    mean_of_products,
    reports,
    three_clients,
)
from methods.tiny import adamw, tiny_model

LONG = {"work": {"batch_size": 4, "steps": 5}, "local": adamw(0.03)}


def peft_loss(model: Any, batch: Batch) -> Tensor:
    """transformers' own loss, all positions computed."""
    loss: Tensor = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    ).loss
    return loss


@pytest.mark.parametrize(
    ("loss", "tolerance"),
    [(lambda model, batch: answer_loss(model.get_base_model(), batch), 0.0), (peft_loss, 1e-5)],
    ids=["the same loss", "transformers' loss"],
)
def test_one_client_is_pefts_training(loss: Any, tolerance: float) -> None:
    model = tiny_model()
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    alone = get_peft_model(copy.deepcopy(model), config).eval()
    data = three_clients()[:1]
    federation = federate("fedit", model, data, **LONG)
    theirs = {
        name.removeprefix("base_model.model."): p
        for name, p in alone.named_parameters()
        if p.requires_grad
    }
    ours = federation.method.replicated(model)
    assert list(ours) == list(theirs)
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(ours[name])
    for round in range(3):
        federation.round()
        optimizer = torch.optim.AdamW(list(theirs.values()), lr=0.03, weight_decay=0.0)
        stream = Stream(SEED, Purpose.BATCHES, round, 0)
        for batch in training_batches(data[0], 4, 5, stream):
            optimizer.zero_grad()
            loss(alone, batch).backward()
            optimizer.step()
        for name, parameter in theirs.items():
            assert parameter.abs().max() > 0
            torch.testing.assert_close(ours[name], parameter, rtol=0, atol=tolerance)


def test_each_factor_becomes_its_mean_by_samples() -> None:
    model = tiny_model()
    federation = federate("fedit", model, three_clients(), **LONG)
    sent = reports(federation)
    federation.round()
    for name, parameter in federation.method.replicated(model).items():
        mean = sum((r.samples / 14 * r.tensors[name].double() for r in sent), torch.zeros(()))
        torch.testing.assert_close(parameter.detach().double(), mean, rtol=0, atol=1e-6)


def test_the_means_of_factors_are_not_the_mean_of_products() -> None:
    """After one visit each they miss a tenth of it or more; the methods that mend it, nothing."""
    missed = {}
    for name in ("fedit", "flora", "ffa-lora"):
        model = tiny_model()
        federation = federate(name, model, three_clients(), **LONG)
        before = effective(model)
        learned = mean_of_products(model, reports(federation))
        federation.round()
        after = effective(model)
        error = change = 0.0
        for target, mean in learned.items():
            wanted = OPTIONS.scaling * mean
            error += float((after[target] - before[target] - wanted).square().sum())
            change += float(wanted.square().sum())
        missed[name] = (error / change) ** 0.5
    assert missed["fedit"] > 0.1
    assert missed["flora"] < 1e-6
    assert missed["ffa-lora"] < 1e-6


def test_two_who_learned_the_same_can_average_to_nothing() -> None:
    """B A = (-B)(-A) = 1 for both clients, and so is the mean; the factors' means are 0."""
    names = "layer" + A, "layer" + B
    sent = [
        Report(0, client, 1, 0.0, {}, {name: torch.full((1, 1), sign) for name in names})
        for client, sign in enumerate((1.0, -1.0))
    ]
    shapes, plan = {name: torch.Size((1, 1)) for name in names}, Plan(0, 0)
    dense, mean = Dense(), WeightedMean().begin()
    for report in sent:
        mean.add(report, dense.decode(report, plan, shapes))
    averaged = dense.encode_update(mean.result(), plan, shapes, None)
    stacked = Stacked(seed=SEED, scaling=1.0).stack(
        [(0.5, own) for own in sent], plan, shapes, None
    )
    for encoded, came in ((averaged, 0.0), (stacked, 1.0)):
        assert product(encoded.tensors[names[1]], encoded.tensors[names[0]]).item() == came
