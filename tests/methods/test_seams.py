"""Where the choices meet: what a rule may ask of a codec, and what a codec is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.federation.messages import Plan, Report, Update
from fullfed.methods.aggregation import Aggregation, RunningMean, Sum, WeightedMean
from fullfed.methods.codecs.codec import Codec, Contribution, Shapes
from fullfed.methods.codecs.dense import Dense
from fullfed.methods.codecs.topk import TopK
from methods.tiny import Federation, make_fedavg, samples, setting, tiny_model

STEP = 0.37  # no power of two, so that every product is rounded


class Bounded(Aggregation):
    """A rule that would ask how large changes are."""

    @property
    def needs_changes(self) -> bool:
        return True

    def begin(self) -> Sum:
        return RunningMean(WeightedMean("equal"))


@pytest.mark.parametrize("codec", [Dense("bfloat16"), Dense("int8"), TopK(count=9)])
def test_a_rule_on_changes_takes_codecs_that_send_them(codec: Codec) -> None:
    make_fedavg(setting(tiny_model(), clients=3, codec=codec, aggregation=Bounded()))


def test_a_rule_on_changes_is_refused_where_weights_are_sent() -> None:
    made = setting(tiny_model(), clients=3, codec=Dense(), aggregation=Bounded())
    with pytest.raises(UserError, match=r"^codec: .* take codec\.precision = 'bfloat16'"):
        make_fedavg(made)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_what_is_decoded_are_weights_where_the_codec_says_so(precision: str) -> None:
    codec, found = Dense(precision), list[Contribution]()  # type: ignore[arg-type]

    class Kept(RunningMean):
        def add(self, report: Report, contribution: Contribution) -> None:
            found.append(contribution)
            super().add(report, contribution)

    class Keeping(Aggregation):
        def begin(self) -> Sum:
            return Kept(WeightedMean())

    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    method = make_fedavg(setting(model, codec=codec, aggregation=Keeping()))
    Federation(model, method, [samples(4)]).round()
    for name, p in model.named_parameters():
        after = p.detach()
        expected = after if codec.sends_weights else after - before[name]
        tolerance = float(expected.abs().max()) / 100  # of int8; bfloat16's is less
        assert torch.allclose(found[0].tensors[name], expected, atol=tolerance), name


def test_a_report_is_decoded_with_its_own_plan() -> None:
    told: list[tuple[int, int]] = []

    @dataclass(frozen=True)
    class Watched(Dense):
        def decode(self, report: Report, plan: Plan, shapes: Shapes) -> Contribution:
            told.append((report.client, plan.client))
            return super().decode(report, plan, shapes)

    model = tiny_model()
    method = make_fedavg(setting(model, clients=3, codec=Watched()))
    Federation(model, method, [samples(4, seed) for seed in range(3)]).round()
    assert told == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_products_and_sums_of_a_step_are_rounded_one_by_one(precision: str) -> None:
    """A processor that fuses them would give a replica of its own."""
    codec, shape = Dense(precision), torch.Size((61, 67))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    start, number = (torch.randn(shape, generator=generator) for _ in range(2))
    sent = codec.encode_update(Contribution({"w": number}), Plan(0, 0), {"w": shape}, None).tensors
    changed = {"w": start.clone()}
    codec.apply(changed, Update(0, {"server_step": STEP}, sent), {"w": shape})
    values = _decoded(codec, sent, shape).numpy()
    w, step = start.numpy(), np.float32(STEP)
    expected = w + (values - w) * step if codec.sends_weights else w + values * step
    assert np.array_equal(changed["w"].numpy(), expected)


def _decoded(codec: Dense, sent: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    report = Report(0, 0, 1, 0.0, tensors=sent)
    return codec.decode(report, Plan(0, 0), {"w": shape}).tensors["w"]
