"""FedKSeed is MeZO where there is one client; base and newest update are the whole model."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedModel

from fullfed.data.batches import Batch, training_batches
from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival, Inbox
from fullfed.federation.messages import MessageError, Plan, Report, Update, decode, encode
from fullfed.federation.method import VisitError
from fullfed.federation.replica import Replica
from fullfed.methods import fedkseed
from fullfed.methods.codecs.seeds import Candidates, probabilities
from fullfed.methods.composition import Composition
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import replay, verify
from fullfed.sketch import Purpose, Stream, perturb_
from fullfed.sketch.entries import NORMALS, SIGNS
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


def made(model: PreTrainedModel, pro: bool = False, steps: int = 6, **changes: Any) -> Composition:
    """Clients who take six steps each."""
    options = {name: changes.pop(name) for name in list(changes) if name in OPTIONS}
    known = {"local": sgd(RATE), "work": {"batch_size": 4, "steps": steps}}
    build = fedkseed.build_pro if pro else fedkseed.build
    return build(setting(model, **(known | changes)), fedkseed.FedKSeedOptions(**options))


OPTIONS = ("seeds", "distribution", "perturbation")


def data() -> list[list[Any]]:
    """Three clients with 9, 4 and 1 samples."""
    return [samples(9, seed=0), samples(4, seed=1), samples(1, seed=2)]


def three(model: PreTrainedModel, **changes: Any) -> Federation:
    return Federation(model, made(model, clients=3, **changes), data())


def first_plan(method: Composition, client: int = 0) -> Plan:
    return next(plan for plan in method.plans(0, None) if plan.client == client)


# The walk


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_a_report_replays_the_clients_weights_bit_for_bit(
    distribution: Any, dtype: torch.dtype
) -> None:
    model = tiny_model().to(dtype)
    method = made(model, distribution=distribution, seeds=8, perturbation=0.01)
    before, plan = weights(model), first_plan(method)
    report = decode(encode(method.train(model, plan, data()[0], None).report), Report)
    assert same(weights(model), before)

    stream = Stream(5, Purpose.BATCHES, 0, 0)
    batches = training_batches(data()[0], 4, 6, stream)
    method.local.improve(model, dict(model.named_parameters()), batches, plan, {})
    trained = weights(model)
    assert not same(trained, before)

    candidates, derivatives = (report.tensors[n] for n in ("candidates", "derivatives"))
    for number, derivative in zip(candidates.tolist(), derivatives.tolist(), strict=True):
        direction = Stream(5, Purpose.DIRECTION, owner=number)
        perturb_(list(before.values()), direction, -RATE * derivative, distribution)
    assert same(before, trained)


def test_a_visit_holds_the_model_once() -> None:
    """What a visit allocates at any moment is far less than the weights that it changes."""
    config = tiny_model().config
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 16, 64, 128
    model = LlamaForCausalLM(config).eval()
    method = made(model)
    plan, one = first_plan(method), data()[2]
    method.train(model, plan, one, None)  # kernels are compiled now
    with torch.profiler.profile(profile_memory=True) as profile:
        method.train(model, plan, one, None)
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = [*itertools.accumulate(nbytes for _, nbytes in changes)]
    assert 0 < max(held) < 0.25 * sum(p.nbytes for p in model.parameters())


def mezo(
    model: PreTrainedModel, batches: Any, numbers: list[int], distance: float
) -> PreTrainedModel:
    """Malladi et al. 2023, Algorithm 1, in place and in float64; z from the reference generator."""
    model = copy.deepcopy(model).double()
    parameters = list(model.parameters())
    sizes = [p.numel() for p in parameters]

    def move(z: Tensor, scale: float) -> None:
        for p, part in zip(parameters, z.split(sizes), strict=True):
            p.add_(scale * part.view(p.shape))

    def loss(batch: Batch) -> float:
        logits = model(batch.input_ids).logits[:, :-1]
        return float(cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten()))

    with torch.no_grad():
        for batch, number in zip(batches, numbers, strict=True):
            stream = Stream(5, Purpose.DIRECTION, owner=number)
            z = torch.from_numpy(NORMALS.values(stream, 0, -(-sum(sizes) // 128))).double()
            z = z.flatten()[: sum(sizes)]
            move(z, distance)
            ahead = loss(batch)
            move(z, -2 * distance)
            behind = loss(batch)
            move(z, distance)
            move(z, -RATE * (ahead - behind) / (2 * distance))
    return model


def test_with_one_client_the_accumulators_follow_mezo() -> None:
    """To a thousandth of the way: a loss in float32 leaves 1e-5 of noise in a derivative here."""
    model = tiny_model()
    alone, base, distance = copy.deepcopy(model), flat(weights(model)), 0.02
    options: Any = {"distribution": "gaussian", "perturbation": distance, "seeds": 1 << 20}
    method = made(model, **options)
    federation = Federation(model, method, data()[:1])
    for round in range(3):
        numbers = [method.local.candidates.draw(Plan(round, 0), step) for step in range(6)]
        assert len(set(numbers)) == 6
        stream = Stream(5, Purpose.BATCHES, round, 0)
        alone = mezo(alone, training_batches(data()[0], 4, 6, stream), numbers, distance)
        federation.round()
    moved = (flat(weights(alone)) - base).norm()
    assert moved > 0.05
    assert (flat(weights(model)) - flat(weights(alone))).norm() < 1e-3 * moved


# The update


@pytest.mark.parametrize("pro", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_newest_update_and_the_base_are_every_replica_bit_for_bit(
    dtype: torch.dtype, pro: bool
) -> None:
    federation = three(tiny_model().to(dtype), seeds=16, pro=pro)
    steady = Replica(tiny_model().to(dtype), federation.method)
    for _ in range(4):
        update = federation.round().update
        steady.apply(update)
        late = Replica(tiny_model().to(dtype), federation.method)
        late.apply(decode(encode(update), Update))
        assert same(weights(steady.model), weights(federation.model))
        assert same(weights(late.model), weights(federation.model))
    assert not same(weights(late.model), weights(tiny_model().to(dtype)))


@pytest.mark.parametrize(
    ("rule", "shares"), [("samples", (9 / 14, 4 / 14, 1 / 14)), ("equal", (1 / 3,) * 3)]
)
def test_accumulators_add_up_the_clients_mean_walk(rule: str, shares: tuple[float, ...]) -> None:
    model = tiny_model()
    federation = three(model, seeds=4, weights=rule)
    expected, rows = np.zeros(4), -(-flat(weights(model)).numel() // 128)
    for round in range(2):
        plans = federation.method.plans(round, federation.last)
        for share, plan in zip(shares, plans, strict=True):
            report = federation.method.train(model, plan, data()[plan.client], None).report
            walk = zip(*(t.tolist() for t in report.tensors.values()), strict=True)
            for number, derivative in walk:
                expected[number] += share * derivative
        update = federation.round().update
    accumulators = update.tensors["accumulators"]
    np.testing.assert_allclose(accumulators.numpy(), expected, rtol=1e-6, atol=1e-6)

    directions = [federation.method.codec.candidates.direction(k).stream for k in range(4)]
    signs = np.stack([SIGNS.values(stream, 0, rows).reshape(-1) for stream in directions])
    base = flat(weights(tiny_model()))
    moved = base - RATE * torch.from_numpy(expected @ signs)[: base.numel()]
    torch.testing.assert_close(flat(weights(model)), moved, rtol=0, atol=1e-6)


def test_a_report_is_six_bytes_a_step_and_an_update_four_a_candidate() -> None:
    federation = three(tiny_model(), seeds=1000)
    result = federation.round()
    assert result.aggregated == (0, 1, 2)
    assert max(result.up.values()) < 6 * 6 + 320
    assert 0 < len(encode(result.update)) - 4 * 1000 < 320
    assert federation.method.report_limit(first_plan(federation.method)) > max(result.up.values())


# Drawing candidates


def draws(candidates: Candidates, count: int, p: Tensor | None) -> np.ndarray:
    plan = Plan(3, 7, tensors={} if p is None else {"probabilities": p})
    return np.bincount(
        [candidates.draw(plan, step) for step in range(count)], minlength=candidates.count
    )


@pytest.mark.parametrize("p", [None, (0.3, 0.0, 0.1, 0.25, 0.05, 0.2, 0.02, 0.08)])
def test_candidates_are_drawn_as_often_as_they_should(p: tuple[float, ...] | None) -> None:
    """Pearson's statistic of 7 (or 6) degrees of freedom is below 24.3 with probability 0.999."""
    seen = draws(Candidates(1, 8, "rademacher"), 4000, None if p is None else torch.tensor(p))
    expected = 4000 * np.array(p or (1 / 8,) * 8)
    assert (seen[expected == 0] == 0).all()
    drawn = expected > 0
    assert (np.square(seen - expected)[drawn] / expected[drawn]).sum() < 24.3


def test_visits_draw_different_candidates_from_the_same_ones() -> None:
    candidates = Candidates(1, 4096, "rademacher")
    visits = [
        tuple(candidates.draw(Plan(round, client), step) for step in range(5))
        for round in range(3)
        for client in range(3)
    ]
    assert len(set(visits)) == 9
    assert candidates.direction(3) == candidates.direction(3) != candidates.direction(4)


def test_probabilities_by_hand() -> None:
    """Means are 2, 0 (never visited) and 1: in the unit interval 1, 0 and 1/2."""
    p = probabilities(torch.tensor([4.0, 0.0, 3.0]), torch.tensor([2, 0, 3]))
    terms = [math.exp(1), 1.0, math.exp(0.5)]
    torch.testing.assert_close(p, torch.tensor([term / sum(terms) for term in terms]))
    equal = probabilities(torch.zeros(4), torch.zeros(4))
    assert equal.tolist() == [0.25] * 4


def walk_report(client: int, *walk: tuple[int, float]) -> Report:
    numbers, derivatives = zip(*walk, strict=True)
    return Report(
        0,
        client,
        samples=4,
        loss=1.0,
        tensors={
            "candidates": torch.tensor(numbers, dtype=torch.int16),
            "derivatives": torch.tensor(derivatives),
        },
    )


def test_pros_history_is_of_clipped_amplitudes_and_tells_the_next_plans() -> None:
    method = made(tiny_model(), pro=True, clients=2, seeds=3, steps=2)
    plans = method.plans(0, None)
    assert plans[0].tensors["probabilities"].tolist() == pytest.approx([1 / 3] * 3)
    reports = [walk_report(0, (0, -4.0), (1, 5000.0)), walk_report(1, (0, 2.0), (0, 0.0))]
    first = method.aggregate(plans, reports, None)
    assert first.tensors["amplitudes"].tolist() == [6.0, 1000.0, 0.0]
    assert first.tensors["visits"].tolist() == [3, 1, 0]
    assert first.tensors["accumulators"].tolist() == [-1.0, 2500.0, 0.0]
    second = method.aggregate(method.plans(1, first), reports, first)
    assert second.tensors["amplitudes"].tolist() == [12.0, 2000.0, 0.0]
    assert second.tensors["visits"].tolist() == [6, 2, 0]
    terms = [math.exp(2 / 1000), math.e, 1.0]
    for plan in method.plans(2, decode(encode(second), Update)):
        p = plan.tensors["probabilities"].tolist()
        assert p == pytest.approx([term / sum(terms) for term in terms])


def test_the_plans_of_pro_are_in_the_accounts() -> None:
    plain, pro = three(tiny_model(), seeds=1000), three(tiny_model(), seeds=1000, pro=True)
    plans, more = plain.round().down, pro.round().down
    assert all(0 <= more[client] - plans[client] - 4 * 1000 < 128 for client in plans)


# What is refused


@pytest.mark.parametrize(
    ("p", "complaint"),
    [
        (torch.full((8,), 0.25), "are not non-negative numbers that sum to 1"),
        (torch.tensor([1.5, -0.5] + [0.0] * 6), "are not non-negative numbers that sum to 1"),
        (torch.full((7,), 1 / 7), r"is \(7,\) of torch.float32, not \(8,\) of torch.float32"),
        (torch.full((8,), 1 / 8).double(), r"is \(8,\) of torch.float64"),
    ],
)
def test_probabilities_that_are_none(p: Tensor, complaint: str) -> None:
    model = tiny_model()
    before, method = weights(model), made(model, pro=True, seeds=8)
    plan = replace(first_plan(method), tensors={"probabilities": p})
    with pytest.raises(VisitError, match=rf"^the plan's '?probabilities'? {complaint}[^.]*"):
        method.train(model, plan, data()[0], None)
    assert same(weights(model), before)


def honest(method: Composition) -> Report:
    return method.train(tiny_model(), first_plan(method), data()[0], None).report


def changed(report: Report, **tensors: Tensor | None) -> Report:
    """The report with some of its tensors replaced, or left out."""
    kept = {**report.tensors, **tensors}
    return replace(report, tensors={name: t for name, t in kept.items() if t is not None})


HOSTILE: dict[str, Any] = {
    "the report's candidates are 0 to 8, but they are numbered from 0 to 7": {
        "candidates": torch.tensor([0, 1, 2, 3, 4, 8], dtype=torch.int16)
    },
    "the report's candidates are -1 to 4, but they are numbered from 0 to 7": {
        "candidates": torch.tensor([0, 1, 2, 3, 4, -1], dtype=torch.int16)
    },
    "the report's 'candidates' is (5,) of torch.int16, not (6,) of torch.int16": {
        "candidates": torch.zeros(5, dtype=torch.int16),
        "derivatives": torch.zeros(5),
    },
    "the report's 'candidates' is (6,) of torch.int64, not (6,) of torch.int16": {
        "candidates": torch.zeros(6, dtype=torch.int64)
    },
    "the report's 'derivatives' is (7,) of torch.float32, not (6,) of torch.float32": {
        "derivatives": torch.zeros(7)
    },
    "the report does not hold exactly the tensors candidates, derivatives": {"derivatives": None},
    "the message's tensor 'derivatives' holds a number that is not finite": {
        "derivatives": torch.tensor([0, 0, 0, 0, 0, torch.nan])
    },
    "bytes, more than the": {"candidates": torch.zeros(1 << 16, dtype=torch.int16)},
}


@pytest.mark.parametrize("complaint", HOSTILE)
def test_hostile_reports(complaint: str) -> None:
    model = tiny_model()
    method = made(model, seeds=8)
    inbox = Inbox(method, method.plans(0, None), model)
    payload = encode(changed(honest(method), **HOSTILE[complaint]))
    assert list(inbox.in_client_order([Arrival(0, payload)])) == []
    assert complaint in inbox.refused[0][1]


def test_an_honest_report_is_let_in() -> None:
    model = tiny_model()
    method = made(model, seeds=8)
    inbox = Inbox(method, method.plans(0, None), model)
    assert len(list(inbox.in_client_order([Arrival(0, encode(honest(method)))]))) == 1


def test_a_visit_by_epochs_has_as_many_steps_as_its_samples_need() -> None:
    """Nine samples in batches of four, twice over."""
    method = made(tiny_model(), seeds=8, work={"batch_size": 4, "epochs": 2})
    report = honest(method)
    assert report.tensors["candidates"].shape == (6,)
    method.check(report, first_plan(method))
    with pytest.raises(MessageError, match=r"is \(6,\) of torch.int16, not \(8,\)"):
        method.check(replace(report, samples=13), first_plan(method))


def test_many_candidates_need_wider_numbers() -> None:
    method = made(tiny_model(), seeds=(1 << 15) + 1)
    assert honest(method).tensors["candidates"].dtype == torch.int32
    method.check(honest(method), first_plan(method))


def test_an_update_of_another_method_is_refused() -> None:
    method = made(tiny_model(), seeds=8)
    update = Update(0, {"server_step": 1.0}, {"accumulators": torch.zeros(9)})
    with pytest.raises(UserError, match=r"^update 0 does not fit the model and the method; "):
        Replica(tiny_model(), method).apply(update)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"seeds": 0}, "method: seeds is at least 1 and below 2**31."),
        ({"perturbation": 0.0}, "method: perturbation is a positive number."),
        ({"perturbation": math.inf}, "method: perturbation is a positive number."),
        ({"distribution": "cauchy"}, "method.distribution: input should be 'rademacher' or"),
        ({"seed": 3}, "there is no key 'method.seed'"),
    ],
)
@pytest.mark.parametrize("name", ["fedkseed", "fedkseed-pro"])
def test_options_that_make_no_sense(name: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        method_options(name, **options)
    assert complaint in str(caught.value)


# Whole runs


@pytest.mark.parametrize("name", ["fedkseed", "fedkseed-pro"])
def test_a_run_stopped_in_the_middle_goes_on_as_if_it_had_not_been(
    tmp_path: Path, name: str
) -> None:
    write_model(tmp_path / "model")
    write_data(tmp_path / "train.jsonl")
    wanted = recipe(
        tmp_path, method={"name": name, "seeds": 16}, local={"learning_rate": 1e-3, "steps": 3}
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run.start(wanted, whole)
    shutil.copytree(whole, stopped)
    (stopped / "summary.json").unlink()
    (stopped / "snapshot.safetensors").unlink()
    log = (stopped / "updates.log").read_bytes()
    (stopped / "updates.log").write_bytes(log[:-5])
    lines = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text("".join(lines[:3]))
    run.resume(stopped)
    assert (stopped / "updates.log").read_bytes() == log
    assert verify(RunFolder(stopped)) == verify(RunFolder(whole)) == 4
    newest, _ = replay(RunFolder(whole))
    assert same(weights(newest), weights(replay(RunFolder(stopped))[0]))
