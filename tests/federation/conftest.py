"""A federation of five clients on a model of two small tensors, for tests without a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fullfed.methods.codecs.dense import Dense
from fullfed.methods.composition import Composition
from fullfed.methods.fedavg import FedAvgOptions
from fullfed.methods.fedavg import build as build_fedavg
from fullfed.methods.ferret import FerretOptions
from fullfed.methods.ferret import build as build_ferret
from methods.tiny import setting, sgd

SHAPES = {"matrix": torch.Size([4, 5]), "vector": torch.Size([3])}
SETTING = setting(torch.nn.Module(), clients=5, seed=7, local=sgd(0.1, batch_size=2), shapes=SHAPES)


def make_fedavg(precision: str = "float32") -> Composition:
    codec = Dense(precision)  # type: ignore[arg-type]
    return build_fedavg(replace(SETTING, codec=codec), FedAvgOptions())


def make_ferret(**options: object) -> Composition:
    return build_ferret(SETTING, FerretOptions(**({"coordinates": 8} | options)))  # type: ignore[arg-type]


def make_model() -> torch.nn.Module:
    """What the server holds of it: the two tensors, and one that nobody trains."""
    model, generator = torch.nn.Module(), torch.Generator().manual_seed(9)
    for name, shape in SHAPES.items():
        model.register_parameter(name, torch.nn.Parameter(torch.randn(shape, generator=generator)))
    model.register_parameter("frozen", torch.nn.Parameter(torch.full((10,), 10.0)))
    return model


MODEL = make_model()

METHODS: dict[str, Callable[[], Composition]] = {
    "fedavg": make_fedavg,
    "fedavg in bfloat16": lambda: make_fedavg(precision="bfloat16"),
    "ferret": make_ferret,
    "ferret with shared directions": lambda: make_ferret(seeds="shared"),
    "ferret in one bit": lambda: make_ferret(bits=1),
    "ferret in four bits with shared directions": lambda: make_ferret(bits=4, seeds="shared"),
    "ferret with a constant step": lambda: make_ferret(server_step=0.5),
    "ferret with the paper's directions": lambda: make_ferret(basis="normal"),
}


@pytest.fixture(params=METHODS, scope="module")
def method(request: pytest.FixtureRequest) -> Composition:
    """Each method in turn."""
    return METHODS[request.param]()


@pytest.fixture(scope="module")
def ferret() -> Composition:
    """Ferret with eight coordinates and the automatic step."""
    return make_ferret()


@pytest.fixture(scope="module")
def fedavg() -> Composition:
    """FedAvg in float32."""
    return make_fedavg()
