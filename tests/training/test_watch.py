"""An observer sees every step of a visit, whatever its local work is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fullfed.federation.client import Worker
from fullfed.federation.messages import Report, decode, encode
from fullfed.federation.replica import Replica
from fullfed.headway import Headway
from fullfed.methods import fed_sb, fedkseed, fedzo
from fullfed.methods.composition import Composition
from fullfed.methods.setting import Setting
from methods.tiny import make_fedavg, samples, setting, tiny_model


def make_fedkseed(setting: Setting) -> Composition:
    return fedkseed.build(setting, fedkseed.FedKSeedOptions(seeds=8))


def make_fedzo(setting: Setting) -> Composition:
    return fedzo.build(setting, fedzo.FedZOOptions())


def make_fed_sb(setting: Setting) -> Composition:
    return fed_sb.build(setting, fed_sb.FedSBOptions(rank=2))


@pytest.mark.parametrize("make", [make_fedavg, make_fedkseed, make_fedzo, make_fed_sb])
def test_an_observer_sees_the_steps_the_tokens_and_the_mean_loss(
    make: Callable[[Setting], Composition],
) -> None:
    model, examples, seen = tiny_model(), samples(6), list[Headway]()
    more: dict[str, Any] = {}
    if make is make_fed_sb:
        scope = fed_sb.scope(5, fed_sb.FedSBOptions(rank=2))
        scope.attach(model)
        more = {
            "shapes": {name: p.shape for name, p in scope.trained(model).items()},
            "replicated": {name: p.shape for name, p in scope.replicated(model).items()},
        }
    method = make(setting(model, clients=8, work={"epochs": 2, "batch_size": 4}, **more))
    worker = Worker(Replica(model, method), method, {3: examples}, observer=seen.append)
    plan = next(plan for plan in method.plans(0, None) if plan.client == 3)
    report = decode(worker.visit(encode(plan)).payload or b"", Report)
    assert [(h.work, h.done, h.of, h.client) for h in seen] == [
        ("train", done, 4, 3) for done in range(5)
    ]
    tokens = sum(map(len, examples))
    assert [seen[0].tokens, seen[2].tokens, seen[4].tokens] == [0, tokens, 2 * tokens]
    assert seen[0].loss is None
    assert seen[4].loss is not None
    assert seen[4].loss() == pytest.approx(report.loss, rel=1e-6)
