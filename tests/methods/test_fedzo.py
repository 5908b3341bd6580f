"""FedZO's estimate is the paper's, and on average the gradient; its reports are FedAvg's."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fullfed.config import LocalTable
from fullfed.data.batches import Batch, collate
from fullfed.errors import UserError
from fullfed.federation.messages import Plan, encode
from fullfed.methods import fedzo
from fullfed.methods.composition import Composition
from fullfed.methods.fedzo import AlongSpheres
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from fullfed.sketch import Purpose, Stream
from fullfed.sketch.entries import NORMALS
from fullfed.training.exact import dithered
from fullfed.training.loss import answer_loss_value
from fullfed.training.zeroth_order import Neighbourhood
from methods.tiny import (
    Federation,
    flat,
    method_options,
    same,
    samples,
    setting,
    sgd,
    tiny_model,
    weights,
)
from runs.small import recipe, write_data, write_model

RATE = 0.01


def made(model: Any, precision: str = "float32", **options: Any) -> Composition:
    changed = setting(model, local=sgd(RATE), codec={"name": "dense", "precision": precision})
    return fedzo.build(changed, fedzo.FedZOOptions(**options))


def unit(stream: Stream, d: int) -> Tensor:
    """The direction on the sphere, float64, from the reference generator."""
    z = torch.from_numpy(NORMALS.values(stream, 0, -(-d // 128))).flatten()[:d].double()
    return z / z.norm()


@pytest.mark.parametrize("directions", [1, 3])
def test_a_step_is_the_papers_estimate(directions: int) -> None:
    """One client, one step on one batch; the same in place, and in float64 but for the loss."""
    model, mu = tiny_model(), 0.5
    base, alone = flat(weights(model)), copy.deepcopy(model)
    examples = samples(4)
    batch, d = collate(examples), base.numel()

    def loss(at: Tensor) -> float:
        nn.utils.vector_to_parameters(at.float(), alone.parameters())
        return answer_loss_value(alone, batch)

    estimate = torch.zeros_like(base)
    for n in range(directions):
        v = unit(Stream(5, Purpose.DIRECTION, 0, 0, n), d)
        estimate += d / mu * (loss(base + mu * v) - loss(base)) * v / directions
    Federation(model, made(model, directions=directions, smoothing=mu), [examples]).round()
    moved = flat(weights(model)) - base
    # Losses of about 3 are in float32; d / mu is 800.
    torch.testing.assert_close(moved, -RATE * estimate, rtol=1e-3, atol=1e-5)
    assert moved.norm() > 0.01


class Bowl(nn.Module):
    """f(w) = (w - c)' A (w - c) / 2 at w = 0, whose gradient there is -A c."""

    def __init__(self, a: Tensor, c: Tensor) -> None:
        super().__init__()
        self.w, self.a, self.c = nn.Parameter(torch.zeros(c.numel())), a, c

    def forward(self) -> Tensor:
        return (self.w - self.c) @ self.a @ (self.w - self.c) / 2


def test_the_mean_estimate_is_the_gradient_of_a_quadratic() -> None:
    """The forward difference's error is even in v, so its product with v averages out.

    300 estimates of variance about d |gradient|**2: within five standard errors of the mean.
    """
    generator = torch.Generator().manual_seed(0)
    root, count, d = torch.randn(6, 6, generator=generator), 300, 6
    bowl: Any = Bowl(root @ root.T, torch.randn(6, generator=generator))
    gradient = -(bowl.a @ bowl.c).double()
    nearby = Neighbourhood(bowl, dict(bowl.named_parameters()), lambda model, batch: model())
    batch: Batch = collate(samples(2))
    local = AlongSpheres(seed=1, directions=1, rms=0.02, local=LocalTable(learning_rate=1.0))
    estimates = []
    for n in range(count):
        stream = Stream(1, Purpose.DIRECTION, owner=n)
        z = torch.from_numpy(NORMALS.values(stream, 0, 1)).flatten()[:d].double()
        estimates.append(-local.amount(nearby, batch, nearby.here(batch), stream) * z)
    stacked = torch.stack(estimates)
    errors = stacked.std(dim=0) / math.sqrt(count)
    assert (stacked.mean(dim=0) - gradient).abs().lt(5 * errors).all()
    assert errors.norm() < 0.25 * gradient.norm()


def test_steps_rounds_and_clients_have_directions_of_their_own() -> None:
    local = AlongSpheres(seed=1, directions=2, rms=0.1, local=LocalTable(learning_rate=1.0))
    streams = {
        local._stream(Plan(round, client), step, n)
        for round in range(2)
        for client in range(2)
        for step in range(3)
        for n in range(2)
    }
    assert len(streams) == 24


def test_by_itself_the_smoothing_grows_with_the_model() -> None:
    model = tiny_model()
    d = setting(model).elements
    by_itself: Any = made(model).local
    chosen: Any = made(model, smoothing=5e-4 * math.sqrt(d)).local
    assert by_itself.rms == pytest.approx(5e-4)
    assert chosen.rms == pytest.approx(5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_federations_are_one_bit_for_bit(dtype: torch.dtype, precision: Any) -> None:
    data = [samples(9, seed=0), samples(4, seed=1)]
    models = [tiny_model().to(dtype) for _ in range(2)]
    first, second = (Federation(m, made(m, precision=precision), data) for m in models)
    for _ in range(2):
        second.worker.deliver(encode(first.round().update))
        assert same(weights(models[0]), weights(models[1]))
    assert not same(weights(models[0]), weights(tiny_model().to(dtype)))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"directions": 0}, "method: directions is at least 1."),
        ({"smoothing": 0.0}, "method: smoothing is a positive number or 'auto'."),
        ({"smoothing": math.nan}, "method: smoothing is a positive number or 'auto'."),
        ({"precision": "bfloat16"}, "there is no key 'method.precision'"),
        ({"seeds": 4096}, "there is no key 'method.seeds'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        method_options("fedzo", **options)
    assert complaint in str(caught.value)


def test_a_whole_run_verifies(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_data(tmp_path / "train.jsonl")
    local = {"learning_rate": 1e-4, "steps": 2}
    run.start(recipe(tmp_path, method={"name": "fedzo"}, local=local), tmp_path / "run")
    assert verify(RunFolder(tmp_path / "run")) == 4


def test_a_model_of_16_bits_follows_the_exact_values_that_steps_are_taken_on() -> None:
    model = tiny_model().bfloat16()
    own = dict(model.named_parameters())
    exact = dithered(own, Stream(1, Purpose.DITHER))
    before = {name: value.clone() for name, value in exact.items()}
    local = AlongSpheres(seed=1, directions=1, rms=0.01, local=LocalTable(learning_rate=0.1))
    done = local.improve(model, own, [collate(samples(4))] * 2, Plan(0, 0), {}, exact)
    assert same(exact, before)
    assert not same(dict(done.exact), before)
    for name, parameter in own.items():
        assert torch.equal(parameter, done.exact[name].bfloat16())
