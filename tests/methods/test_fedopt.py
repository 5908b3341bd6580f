"""Optimizers at the server: their steps by hand and torch's own, and replicas that keep moments."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.federation.messages import Update, encode
from fullfed.federation.replica import Replica
from fullfed.methods import fedopt
from fullfed.methods.catalogue import METHODS
from fullfed.methods.composition import Composition
from fullfed.methods.server_optimizers import AdamW, Adaptive, Momentum, ServerOptimizer
from methods.tiny import (
    Federation,
    adamw,
    make_fedavg,
    method_options,
    same,
    samples,
    setting,
    tiny_model,
    weights,
)

DATA = [samples(9, seed=0), samples(4, seed=1)]
NAMES = ("fedavgm", "fedadagrad", "fedadam", "fedyogi", "diloco")
CODECS: dict[str, dict[str, Any]] = {
    "weights": {"name": "dense"},
    "changes": {"name": "dense", "precision": "bfloat16"},
    "largest": {"name": "topk", "count": 60, "error_feedback": True},
    "sketch": {"name": "sketch", "coordinates": 200, "scales": "none"},
}


def build(name: str, model: Any, codec: str = "weights", **options: Any) -> Composition:
    made = setting(model, clients=2, local=adamw(), work={"steps": 3}, codec=CODECS[codec])
    entry = METHODS[name]
    return entry.build(made, entry.options(**options))


def steps_of(optimizer: ServerOptimizer, changes: list[Tensor], start: Tensor) -> Tensor:
    """A parameter after a step for each change."""
    parameter, moments = start.clone(), optimizer.start(start)
    assert tuple(moments) == optimizer.names
    for change in changes:
        parameter += optimizer.step(change.clone(), parameter, moments)
    return parameter


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Momentum(0.7, 0.9), lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9)),
        (Momentum(0.7, 0.9, True), lambda p: torch.optim.SGD(p, 0.7, 0.9, nesterov=True)),
        (AdamW(0.1), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0)),
        (
            AdamW(0.1, 0.8, 0.95, 1e-3, 0.2),
            lambda p: torch.optim.AdamW(p, 0.1, (0.8, 0.95), 1e-3, weight_decay=0.2),
        ),
    ],
)
def test_steps_are_those_of_torch_in_float64(ours: ServerOptimizer, theirs: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    changes = [torch.randn(3, generator=generator) * 10.0**-n for n in range(5)]
    start = torch.randn(3, generator=generator)
    parameter = torch.nn.Parameter(start.double())
    optimizer = theirs([parameter])
    for change in changes:
        parameter.grad = -change.double()
        optimizer.step()
    torch.testing.assert_close(
        steps_of(ours, changes, start).double(), parameter.detach(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("rule", ["adagrad", "adam", "yogi"])
def test_adaptive_steps_are_the_papers(rule: Any) -> None:
    """Algorithm 2 of arXiv 2003.00295, a number at a time."""
    changes = [np.array([0.5, -0.02, 0.0]), np.array([0.1, -0.3, 1e-4]), np.array([-2.0, 0.0, 0.0])]
    rate, beta_1, beta_2, tau = 0.3, 0.8, 0.95, 0.01
    w, m, v = np.array([1.0, 2.0, 3.0]), np.zeros(3), np.full(3, tau**2)
    for delta in changes:
        m = beta_1 * m + (1 - beta_1) * delta
        if rule == "adagrad":
            v = v + delta**2
        elif rule == "adam":
            v = beta_2 * v + (1 - beta_2) * delta**2
        else:
            v = v - (1 - beta_2) * delta**2 * np.sign(v - delta**2)
        w = w + rate * m / (np.sqrt(v) + tau)
    ours = steps_of(
        Adaptive(rule, rate, beta_1, beta_2, tau),
        [torch.tensor(c, dtype=torch.float32) for c in changes],
        torch.tensor([1.0, 2.0, 3.0]),
    )
    np.testing.assert_allclose(ours.numpy(), w, rtol=1e-6)


def test_diloco_is_sgd_with_nesterov_on_the_clients_mean() -> None:
    """Torch's optimizer, outside, on the mean that FedAvg's clients make of the same start."""
    model = tiny_model()
    federation = Federation(model, build("diloco", model), DATA)
    alone = copy.deepcopy(model)
    parameters = dict(alone.named_parameters())
    outer = torch.optim.SGD(parameters.values(), lr=0.7, momentum=0.9, nesterov=True)
    for round in range(3):
        start = weights(alone)
        plain = make_fedavg(setting(alone, clients=2, local=adamw(), work={"steps": 3}))
        plans = plain.plans(round, None)
        reports = [plain.train(alone, plan, DATA[plan.client], None).report for plan in plans]
        mean = plain.aggregate(plans, reports, None).tensors
        for name, parameter in parameters.items():
            parameter.grad = start[name] - mean[name]
        outer.step()
        outer.zero_grad()
        federation.round()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter, parameters[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("codec", CODECS)
def test_without_memory_a_step_of_one_is_fedavgs(codec: str) -> None:
    model, plain = tiny_model(), tiny_model()
    method = build("fedavgm", model, codec, learning_rate=1.0, momentum=0.0)
    made = setting(plain, clients=2, local=adamw(), work={"steps": 3}, codec=CODECS[codec])
    theirs = Federation(plain, make_fedavg(made), DATA)
    ours = Federation(model, method, DATA)
    for _ in range(2):
        ours.round()
        theirs.round()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, plain.get_parameter(name), rtol=0, atol=1e-6)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", NAMES)
def test_replicas_keep_the_same_moments_by_log_and_by_snapshot(
    name: str, codec: str, tmp_path: Path
) -> None:
    model = tiny_model()
    federation = Federation(model, build(name, model, codec), DATA)
    base, log = copy.deepcopy(model), list[Update]()
    for round in range(4):
        log.append(federation.round().update)
        if round == 1:
            federation.worker.replica.save_snapshot(tmp_path / "snapshot")
    replica = federation.worker.replica
    replayed = Replica(base, build(name, base, codec))
    for update in log:
        replayed.apply(update)
    late = Replica(other := tiny_model(), build(name, other, codec))
    late.load_snapshot(tmp_path / "snapshot")
    for update in log[2:]:
        late.apply(update)
    assert same(dict(replayed.state()), dict(replica.state()))
    assert late.content_hash() == replayed.content_hash() == replica.content_hash()
    moments = [n for n in replica.state() if "/" in n]
    assert len(moments) >= len(weights(model))
    replica.state()[moments[0]].add_(1.0)
    assert replica.content_hash() != late.content_hash()


def test_a_snapshot_is_as_long_as_it_says() -> None:
    model = tiny_model()
    federation = Federation(model, build("fedadam", model), DATA)
    federation.round()
    assert len(federation.worker.replica.snapshot()) == federation.worker.replica.snapshot_bytes


def test_a_skipped_round_leaves_model_and_moments() -> None:
    model = tiny_model()
    federation = Federation(model, build("fedadam", model), DATA)
    federation.round()
    before = {n: t.detach().clone() for n, t in federation.worker.replica.state().items()}
    update = federation.method.skipped(1, federation.last, 1)
    federation.worker.deliver(encode(update))
    assert same(dict(federation.worker.replica.state()), before)


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_of_one_report_knows_no_moments(name: str) -> None:
    """A client is judged by its own change, whatever went before, and leaves no trace."""
    model = tiny_model()
    federation = Federation(model, build(name, model, "changes"), DATA)
    federation.round()
    replica, digest = federation.worker.replica, federation.worker.replica.content_hash()
    plan, *_ = federation.method.plans(1, federation.last)
    report = federation.method.train(model, plan, DATA[0], federation.last).report
    start = weights(model)
    with replica.trial(federation.method.alone(report, plan, federation.last, 1.0)):
        for parameter_name, parameter in model.named_parameters():
            moved = start[parameter_name] + report.tensors[parameter_name].float()
            assert torch.equal(parameter, moved)
    assert replica.content_hash() == digest


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("diloco", {"learning_rate": 0}, "learning_rate is a positive number"),
        ("fedavgm", {"momentum": 1.0}, "momentum is a share, at least 0 and below 1"),
        ("fedadam", {"beta_1": -0.1}, "beta_1 is a share"),
        ("fedyogi", {"beta_2": float("nan")}, "beta_2 is a share"),
        ("fedadagrad", {"tau": 0.0}, "tau is a positive number"),
        ("fedadam", {"tau": 1e-50}, "tau is a positive number, one that float32 holds"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        method_options(name, **options)


def test_defaults_are_the_papers() -> None:
    assert method_options("diloco") == fedopt.DiLoCoOptions(0.7, 0.9)
    assert method_options("fedavgm") == fedopt.MomentumOptions(1.0, 0.9)
    adaptive = method_options("fedadam")
    assert (adaptive.beta_1, adaptive.beta_2, adaptive.tau) == (0.9, 0.99, 1e-3)
