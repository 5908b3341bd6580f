"""FFA-LoRA: with one A for all, averaging B is averaging the products."""

from __future__ import annotations

import torch

from fullfed.methods.scopes import A, B, adapted, initial_a
from methods.lora import SEED, federate, mean_of_products, products, reports, three_clients
from methods.tiny import adamw, tiny_model

LONG = {"work": {"batch_size": 4, "steps": 5}, "local": adamw(0.03)}


def test_the_mean_of_b_makes_the_mean_of_products() -> None:
    model = tiny_model()
    federation = federate("ffa-lora", model, three_clients(), **LONG)
    for _ in range(3):
        mean = mean_of_products(model, reports(federation))
        federation.round()
        for target, came in products(model, {}).items():
            assert came.abs().max() > 1e-3
            torch.testing.assert_close(came, mean[target], rtol=0, atol=1e-7)


def test_a_stays_and_only_b_is_sent() -> None:
    model = tiny_model()
    federation = federate("ffa-lora", model, three_clients(), **LONG)
    result = federation.round()
    parameters = dict(model.named_parameters())
    targets = adapted(parameters)
    for number, target in enumerate(targets):
        a = parameters[target + A]
        assert torch.equal(a, initial_a(SEED, 0, number, a.shape))
    assert list(result.update.tensors) == sorted(target + B for target in targets)
    for report in reports(federation):
        assert report.tensors.keys() == result.update.tensors.keys()
