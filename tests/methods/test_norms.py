"""What codecs say of how large a change is, against how far the model goes by it alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fullfed.federation.client import Worker
from fullfed.federation.messages import Report, decode, encode
from fullfed.federation.replica import Replica, Rounding, norm
from fullfed.methods import fedcybgd, fedkseed
from fullfed.training.layers import layer_names
from methods.lora import effective, federate
from methods.tiny import Federation, flat, make_fedavg, samples, setting, sgd, tiny_model, weights
from training.architectures import make

DATA = [samples(9, seed=0)]


def averaged(**codec: object) -> Federation:
    """One client, by FedAvg and a codec; a whole step of a change that is sent as it is."""
    model = tiny_model()
    made = setting(model, codec=codec)
    return Federation(model, make_fedavg(made, server_step=1.0), DATA)


def by_seeds() -> Federation:
    model = tiny_model()
    made = setting(model, local=sgd(0.001), work={"steps": 6})
    return Federation(model, fedkseed.build(made, fedkseed.FedKSeedOptions(seeds=512)), DATA)


def told(federation: Federation) -> float:
    """The norm that the codec finds in the client's report."""
    [plan] = federation.method.plans(0, None)
    payload = federation.worker.visit(encode(plan)).payload
    assert payload is not None
    report, exact = decode(payload, Report), federation.worker.replica.exact
    return federation.method.norm(report, plan, federation.model, exact)


@pytest.mark.parametrize(
    ("begin", "tolerance"),
    [
        (lambda: averaged(name="dense"), 1e-6),
        (lambda: averaged(name="dense", precision="bfloat16"), 1e-3),
        (lambda: averaged(name="dense", precision="int8"), 1e-3),
        (lambda: averaged(name="topk", count=50), 1e-4),
        (by_seeds, 0.1),  # directions are orthogonal on average
        (lambda: federate("fedit", tiny_model(), DATA), 1e-6),
        (lambda: federate("ffa-lora", tiny_model(), DATA), 1e-6),
    ],
    ids=["float32", "bfloat16", "int8", "top-k", "seeds", "fedit", "ffa-lora"],
)
def test_the_norm_of_a_change_is_how_far_the_model_goes(
    begin: Callable[[], Federation], tolerance: float
) -> None:
    federation = begin()
    said, before = told(federation), flat(weights(federation.model))
    federation.round()
    gone = float((flat(weights(federation.model)) - before).norm())
    assert gone > 0
    assert said == pytest.approx(gone, rel=tolerance)


def test_the_norm_of_stacked_factors_is_that_of_what_they_add_to_the_matrices() -> None:
    federation = federate("flora", tiny_model(), DATA)
    said, before = told(federation), flat(effective(federation.model))
    federation.round()
    gone = float((flat(effective(federation.model)) - before).norm())
    assert said == pytest.approx(gone, rel=1e-5)


@pytest.mark.parametrize("kind", ["master", "stochastic", "no replica"])
def test_the_norm_of_weights_sent_from_16_bits_is_that_of_the_change_alone(kind: str) -> None:
    """A visit begins at numbers that round to the model, and not at the model: the way between
    them is thousands of times as long as this change."""

    def sent(precision: str) -> float:
        model = make("llama").bfloat16()
        shared = {"codec": {"name": "dense", "precision": precision}, "local": sgd(1e-5)}
        if kind == "no replica":
            options = fedcybgd.FedCyBGDOptions(surrogate=0.4, order="permutation")
            layers = tuple(layer_names(model))
            method = fedcybgd.build(setting(model, layers=layers, **shared), options)
        else:
            method = make_fedavg(setting(model, **shared))
        federation = Federation(model, method, DATA)
        if kind == "stochastic":
            replica = Replica(model, method, Rounding("stochastic"))
            federation.worker = Worker(replica, method, dict(enumerate(DATA)))
        return told(federation)

    assert 0 < sent("bfloat16") < 0.01
    assert sent("float32") == pytest.approx(sent("bfloat16"), rel=0.01)


@pytest.mark.parametrize("basis", ["sign", "normal"])
@pytest.mark.parametrize("seeds", ["client", "shared"])
def test_the_norm_of_a_sketched_change_is_that_of_the_change(basis: str, seeds: str) -> None:
    """What a sketch rebuilds is larger, by its noise."""
    count = sum(p.numel() for p in tiny_model().parameters()) // 3
    federation = averaged(name="sketch", coordinates=count, basis=basis, seeds=seeds)
    before = flat(weights(federation.model))
    exact = averaged(name="dense")
    exact.round()
    gone = float((flat(weights(exact.model)) - before).norm())
    assert told(federation) == pytest.approx(gone, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_is_right_however_large_the_numbers(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert norm([torch.full((3, 3), largest, dtype=dtype)]) == pytest.approx(3 * largest)
    assert norm([torch.tensor([3.0]), torch.tensor([[4.0]])]) == pytest.approx(5.0)
    assert norm([]) == 0.0
