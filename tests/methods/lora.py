"""Federations of the methods with adapters, on the random models of tiny.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.federation.messages import Report, decode, encode
from fullfed.methods.catalogue import METHODS
from fullfed.methods.scopes import A, B, LoraOptions, W, adapted
from methods.tiny import Federation, samples, setting

OPTIONS = LoraOptions(rank=2, alpha=3.0)
SEED = 5  # tiny.setting's


def three_clients() -> list[list[TokenizedExample]]:
    """Their samples: 9, 4 and 1."""
    return [samples(9, seed=0), samples(4, seed=1), samples(1, seed=2)]


def federate(
    name: str,
    model: PreTrainedModel,
    data: list[list[TokenizedExample]],
    options: LoraOptions = OPTIONS,
    **changes: Any,
) -> Federation:
    """The method called ``name``, its adapters attached to the model."""
    entry = METHODS[name]
    scope = entry.scope(SEED, options)
    scope.attach(model)
    shapes = {name: p.shape for name, p in scope.trained(model).items()}
    made = setting(model, clients=len(data), shapes=shapes, **changes)
    return Federation(model, entry.build(made, options), data)


def reports(federation: Federation) -> list[Report]:
    """What each client would report on the round to come, which does not begin."""
    plans = federation.method.plans(federation.worker.replica.version, federation.last)
    payloads = [federation.worker.visit(encode(plan)).payload for plan in plans]
    return [decode(payload, Report) for payload in payloads if payload is not None]


def products(model: PreTrainedModel, factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of every target B A, float64; factors that are missing are the model's."""
    own = dict(model.named_parameters()) | factors
    return {
        target: own[target + B].detach().double() @ own[target + A].detach().double()
        for target in adapted(own)
    }


def effective(model: PreTrainedModel, options: LoraOptions = OPTIONS) -> dict[str, Tensor]:
    """Of every target W + alpha / r * B A, float64: what the layer multiplies with."""
    own = dict(model.named_parameters())
    return {
        target: own[target + W].detach().double() + options.alpha / options.rank * product
        for target, product in products(model, {}).items()
    }


def mean_of_products(model: PreTrainedModel, sent: list[Report]) -> dict[str, Tensor]:
    """Of every target what the clients' products come to on average by samples, float64."""
    samples = sum(report.samples for report in sent)
    each = [products(model, dict(report.tensors)) for report in sent]
    return {
        target: sum(
            (r.samples / samples * own[target] for r, own in zip(sent, each, strict=True)),
            0 * each[0][target],
        )
        for target in each[0]
    }
