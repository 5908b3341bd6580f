"""The automatic step: K / (K + r), and a measurement of r that is right."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call
from transformers import LlamaForCausalLM

from fullfed.config import LocalTable, MemoryTable
from fullfed.data.batches import Batch, collate
from fullfed.federation.messages import MessageError, Plan, Report, Update, encode, number, numbers
from fullfed.methods.aggregation import TrimmedMean, WeightedMean
from fullfed.methods.server_step import (
    ConstantStep,
    CurvatureStep,
    Trained,
    _best_gain,
    _cosine_by_signs,
)
from fullfed.sketch import SHARED, SignBasis
from fullfed.training.first_order import train
from fullfed.training.loss import loss_value
from methods.tiny import (
    Federation,
    flat,
    make_ferret,
    same,
    samples,
    setting,
    sgd,
    tiny_model,
    weights,
)

K = 100


MEAN = WeightedMean().scalar


def rule(clients: int = 1, shared: bool = True) -> CurvatureStep:
    return CurvatureStep(5, clients, shared)


def report(gain: float, trace: float, energy: float = 1.0, client: int = 0) -> Report:
    """Of a change along which the loss is a straight line."""
    values = {"gain": gain, "gain_halfway": gain / 2, "trace": trace, "energy": energy}
    return Report(0, client, 1, 0.0, values)


def known(cost: float, gain: float = 1.0, agreement: float = 1.0) -> Update:
    return Update(0, state(cost, gain, agreement))


def state(cost: float, gain: float, agreement: float) -> dict[str, Any]:
    """What an update says of earlier rounds: one, that is in the sums."""
    sums = {"cost": cost, "gain": gain, "agreement": agreement, "rounds": 1.0}
    return {**sums, "costs": [], "gains": []}


AGREEING = Update(0, state(0.0, 0.0, 1.0))


def total(update: Update, of: str) -> float:
    """Over all rounds, the newest ones included."""
    return number(update, of) + sum(numbers(update, f"{of}s"))


def decided(
    reports: Sequence[Report], last: Update | None, coordinates: int = K, **of: Any
) -> Update:
    """What one round decides; the mean change has as much energy as one client's."""
    return Update(0, rule(**of).decide(reports, 1.0, last, coordinates, MEAN))


def test_a_constant_step_is_constant() -> None:
    assert ConstantStep(0.7).decide([], None, None, K, MEAN) == {"server_step": 0.7}


@pytest.mark.parametrize(
    ("coordinates", "energy", "trace", "gain"),
    [(100, 0.5, 800.0, 0.4), (1000, 2.0, 300.0, 0.5), (10, 0.01, 5000.0, 0.125)],
)
def test_the_step_is_k_over_k_and_the_rank(
    coordinates: int, energy: float, trace: float, gain: float
) -> None:
    """One client agrees with itself: r = tr(H) ||delta||**2 / G after one more such round."""
    rank = trace * energy / gain
    last = known(cost=trace * energy, gain=gain)
    values = rule().decide([report(gain, trace, energy)], energy, last, coordinates, MEAN)
    update = Update(0, values)
    assert number(update, "rank") == pytest.approx(rank)
    assert number(update, "server_step") == pytest.approx(coordinates / (coordinates + rank))


def test_the_rank_is_a_ratio_of_sums_over_rounds() -> None:
    """Costs 900 and 100, gains 1 and 3: 1000 / 4."""
    update = decided([report(3.0, 100.0)], known(cost=900.0, gain=1.0))
    assert number(update, "rank") == pytest.approx(250.0)
    assert numbers(update, "costs") == [100.0]
    assert numbers(update, "gains") == [3.0]


def test_the_round_is_measured_as_a_whole() -> None:
    """Clients' gains and traces are averaged before they are divided."""
    reports = [report(3.0, 150.0, client=0), report(-1.0, 650.0, client=1)]
    update = decided(reports, known(400.0, 1.0), clients=2)
    assert number(update, "rank") == pytest.approx(400.0)


def test_a_rule_that_trims_has_no_rank_from_a_liar() -> None:
    """One of five says that noise costs a million times as much and that nothing is gained."""
    honest = [report(1.0, 400.0 + n, client=n) for n in range(4)]
    liar = report(-1e9, 4e8, energy=1e9, client=4)
    trimmed = TrimmedMean(0.2).scalar
    values = rule(clients=5).decide([*honest, liar], 1.0, known(400.0), K, trimmed)
    assert number(Update(0, values), "rank") == pytest.approx(400.0, rel=0.01)


@pytest.mark.parametrize(
    ("shared", "mean_energy", "rank"),
    [
        # Agreement 1: the mean is as large as each; own directions divide the noise by n.
        (True, 1.0, 400.0),
        # Four changes of energy 1 whose mean has 0.25 agree by 0; smoothed with the 1 known
        # before, 0.5. Shared noise has the energy 0.5 + 0.5 / 4.
        (True, 0.25, 400.0 * (0.5 + 0.5 / 4) / 0.5),
    ],
)
def test_noise_and_gain_follow_how_much_clients_agree(
    shared: bool, mean_energy: float, rank: float
) -> None:
    reports = [report(1.0, 400.0, client=n) for n in range(4)]
    values = rule(clients=4, shared=shared).decide(reports, mean_energy, AGREEING, K, MEAN)
    assert number(Update(0, values), "rank") == pytest.approx(rank)


def test_disagreement_by_chance_is_not_taken_for_certain() -> None:
    """Agreement counts as no less than its standard error, here sqrt(2 / 100) / 3 / sqrt(3)."""
    reports = [report(1.0, 400.0, client=n) for n in range(4)]
    last = known(cost=900.0, gain=3.0, agreement=-0.25)
    values = rule(clients=4).decide(reports, 0.25, last, K, MEAN)
    update = Update(0, values)
    assert number(update, "agreement") == pytest.approx(-0.125)
    assert total(update, "gain") == pytest.approx(3.0 + 0.0272166)
    assert total(update, "cost") == pytest.approx(900.0 + 400.0 / 4)


@pytest.mark.parametrize("clients", [2, 5])
@pytest.mark.parametrize("shared", [True, False])
def test_the_standard_error_of_agreement_is_right(shared: bool, clients: int) -> None:
    """Of the smoothed cosine of clients whose changes are drawn independently of each other."""
    step = rule(clients, shared)
    origin = [torch.zeros(4096)]
    last, found = known(1.0, agreement=0.0), []
    for round in range(900):
        generator = torch.Generator().manual_seed(round)
        changes = torch.randn(clients, 4096, generator=generator) / 64
        reports = [report(1.0, 1.0, client=n) for n in range(clients)]
        energy = None
        if shared:
            basis = SignBasis(5, round, owner=SHARED, coordinates=64)
            energy = float(basis.project([changes.mean(dim=0)]).square().sum())
        else:
            for change, told in zip(changes, reports, strict=True):
                told.values["signs"] = step._common_signs([change], origin, Plan(round, 0))
        last = Update(0, step.decide(reports, energy, last, 64, MEAN))
        found.append(number(last, "agreement"))
    assert float(torch.tensor(found).std()) == pytest.approx(
        step._resolution(clients, 64), rel=0.15
    )


@given(slope=st.floats(-2, 2), curvature_=st.floats(-4, 4))
def test_the_best_gain_is_the_highest_point_of_the_parabola(
    slope: float, curvature_: float
) -> None:
    """Against ten thousand points of it between no step and a whole one."""
    steps = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    gains = slope * steps - curvature_ * steps**2 / 2
    best = _best_gain(whole=float(gains[-1]), halfway=float(gains[5000]))
    assert best == pytest.approx(float(gains.max()), abs=1e-7)


@pytest.mark.parametrize("cosine", [1.0, 0.6, 0.0])
def test_with_own_directions_agreement_comes_from_signs(cosine: float) -> None:
    """Changes at a known angle: the cosine is found within four standard errors, on average."""
    found, rounds = [], 60
    for round in range(rounds):
        generator = torch.Generator().manual_seed(round)
        common = torch.randn(4096, generator=generator)
        reports = []
        for client in range(4):
            own = torch.randn(4096, generator=generator)
            change = (1 + client) * (cosine**0.5 * common + (1 - cosine) ** 0.5 * own)
            signs = rule(shared=False)._common_signs([change], [torch.zeros(4096)], Plan(round, 0))
            values = {**report(1.0, 400.0).values, "signs": signs}
            reports.append(Report(0, client, 1, 0.0, values))
            rule(clients=4, shared=False).check(reports[-1])
        found.append(_cosine_by_signs(reports))
    measured = torch.tensor(found)
    error = float(measured.std()) / math.sqrt(rounds)
    assert float(measured.mean()) == pytest.approx(cosine, abs=4 * error + 0.01)
    assert error < 0.02


def test_with_own_directions_noise_is_divided_by_the_cohort() -> None:
    """Four clients with equal signs agree by 1; all of them are as good as four times as many K."""
    values = {**report(1.0, 400.0).values, "signs": bytes(range(8))}
    reports = [Report(0, n, 1, 0.0, dict(values)) for n in range(4)]
    update = Update(
        0,
        rule(clients=4, shared=False).decide(reports, None, AGREEING, K, MEAN),
    )
    assert number(update, "agreement") == pytest.approx(1.0)
    assert number(update, "rank") == pytest.approx(400.0 / 4)


@pytest.mark.parametrize("signs", [None, 5, b"", bytes(7), bytes(9), "0" * 8, "0" * 16])
def test_a_report_without_its_signs_is_refused(signs: Any) -> None:
    values = report(1.0, 1.0).values
    bad = values if signs is None else {**values, "signs": signs}
    with pytest.raises(MessageError, match="lacks the 64 signs of its change"):
        rule(shared=False).check(Report(0, 0, 1, 0.0, bad))


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_where_nothing_was_ever_gained_nothing_is_applied(gain: float) -> None:
    update = decided([report(gain, 1.0)], None)
    assert number(update, "server_step") < 1e-6


def test_a_negative_curvature_is_not_taken_for_a_leave() -> None:
    assert number(decided([report(1.0, -5.0)], None), "server_step") == pytest.approx(
        K / (K + 1000)
    )


def test_more_coordinates_make_a_larger_step() -> None:
    steps = [
        number(decided([report(1.0, 500.0)], known(500.0), coordinates=k), "server_step")
        for k in (1, 10, 100, 1000, 10**6)
    ]
    assert steps == sorted(steps)
    assert 0 < steps[0] < 0.01
    assert 0.99 < steps[-1] < 1


def fitted(batch: Batch) -> LlamaForCausalLM:
    """A model near a minimum, where the curvature is positive."""
    model = tiny_model()
    train(model, dict(model.named_parameters()), [batch] * 150, sgd(0.3), MemoryTable())
    return model


def loss_by_hand(model: LlamaForCausalLM, state: dict[str, Tensor], batch: Batch) -> Tensor:
    """Mean cross-entropy over the answers, of the model with other weights."""
    logits = functional_call(model, state, (batch.input_ids,), {"use_cache": False}).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), batch.labels[:, 1:].reshape(-1)
    )


def trace_by_hand(model: LlamaForCausalLM, batch: Batch) -> float:
    """tr(H) from its definition: the sum of the second derivatives, every one of them."""
    model = copy.deepcopy(model).double()
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(row: Tensor) -> Tensor:
        parts = torch.split(row, [shape.numel() for shape in shapes.values()])
        state = {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        return loss_by_hand(model, state, batch)

    hessian = torch.autograd.functional.hessian(loss, flat(weights(model)))
    assert torch.allclose(hessian, hessian.T, atol=1e-3)  # Llama's norms compute in float32
    return float(hessian.trace())


def test_a_clients_measurement_is_right() -> None:
    batch = collate(samples(6))
    model = fitted(batch)
    expected = trace_by_hand(model, batch)
    before = weights(model)
    generator = torch.Generator().manual_seed(0)
    after = {n: p + 0.03 * torch.randn(p.shape, generator=generator) for n, p in before.items()}
    energy = float((flat(after) - flat(before)).square().sum())
    with torch.no_grad():
        first_loss = float(loss_by_hand(model, before, batch))
        gain = first_loss - float(loss_by_hand(model, after, batch))
        halfway = {name: (before[name] + after[name]) / 2 for name in before}
        gain_halfway = first_loss - float(loss_by_hand(model, halfway, batch))
    last = known(cost=9.0 * K)  # a step of 0.1, so that what is measured is the second order
    costs = []
    for round in range(500):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(after[name])
        values = rule().measure(
            Trained(
                dict(model.named_parameters()),
                before,
                dict(model.named_parameters()),
                partial(loss_value, model, batch, LocalTable()),
                first_loss if round % 2 else None,  # which the rule then measures
            ),
            Plan(round, 0),
            last,
            K,
        )
        assert values["gain"] == pytest.approx(gain, rel=1e-3)
        assert values["gain_halfway"] == pytest.approx(gain_halfway, rel=1e-3)
        assert values["energy"] == pytest.approx(energy, rel=1e-5)
        assert same(weights(model), before)
        costs.append(float(values["trace"]))  # type: ignore[arg-type]
    measured = torch.tensor(costs)
    error = float(measured.std()) / math.sqrt(len(costs))
    assert float(measured.mean()) == pytest.approx(expected, abs=4 * error)
    assert error < 0.05 * expected


def three(**options: Any) -> Federation:
    model = tiny_model()
    made = setting(
        model,
        clients=3,
        work={"batch_size": 4, "steps": 5},
        local=sgd(0.2, clip=1.0),
    )
    return Federation(model, make_ferret(made, **options), [samples(9, seed=n) for n in range(3)])


@pytest.mark.parametrize("seeds", ["shared", "client"])
@pytest.mark.parametrize("basis", ["sign", "normal"])
def test_a_run_carries_what_it_measured_from_round_to_round(seeds: str, basis: str) -> None:
    federation = three(coordinates=40, seeds=seeds, basis=basis)
    for count in range(1, 8):
        update = federation.round().update
        rank, step = number(update, "rank"), number(update, "server_step")
        assert step == pytest.approx(40 / (40 + rank))
        assert number(update, "rounds") == max(count - 3, 0)
        assert len(numbers(update, "costs")) == len(numbers(update, "gains")) == min(count, 3)


def test_the_rule_needs_nothing_but_the_last_update() -> None:
    """A server that begins from the log decides as the one that was there all along."""
    there, newcomer = three(coordinates=40), three(coordinates=40)
    for _ in range(2):
        newcomer.worker.deliver(encode(there.round().update))
    assert encode(there.round().update) == encode(newcomer.round().update)


@pytest.mark.parametrize(
    "values",
    [
        {"costs": [1.7e308] * 3, "gains": [1.0] * 3},  # whose sum is beyond float64
        {"costs": [1.0] * 3, "gains": [1.7e308] * 3},
        {"cost": -1.1e100},
        {"gain": 1.1e100},
        {"agreement": 1.1e100},
        {"rounds": -9.0},  # under a root
    ],
)
def test_an_update_that_no_rounds_led_to_is_refused(values: dict[str, Any]) -> None:
    """Clients reckon with it before they measure."""
    update = Update(0, {**state(4.0, 1.0, 0.3), "server_step": 0.5, "rank": 4.0})
    rule().check_update(update)
    with pytest.raises(MessageError, match="costs and gains that the step's rule cannot add"):
        rule().check_update(Update(0, {**update.values, **values}))


# What a bad round, a liar or a client that stays away does to the rule


AGREED = Update(0, {**AGREEING.values, "rounds": 0.0})  # nothing else is known


def after(rounds: Sequence[tuple[float, float]]) -> float:
    """The rank after rounds of one client, (cost, gain) each."""
    last: Update | None = AGREED
    for cost, gain in rounds:
        last = decided([report(gain, cost)], last)
    assert last is not None
    return number(last, "rank")


@pytest.mark.parametrize("bad", [(1e100, 0.0), (1e100, 1e-9), (-1e100, 1e3), (0.0, 1e9)])
@pytest.mark.parametrize("place", [0, 1, 2, 7])
def test_the_rule_recovers_from_a_bad_round(bad: tuple[float, float], place: int) -> None:
    """Honest rounds cost 400 and gain 1. A cohort of one cannot tell which round was bad until
    there are two more, and then its step is right within a factor that falls."""
    rounds = [(400.0, 1.0)] * place + [bad] + [(400.0, 1.0)] * 2
    assert 400 / 13 < after(rounds) < 400 * 13
    later = after(rounds + [(400.0, 1.0)] * 10)
    assert 400 / 2.1 < later < 400 * 2.1


def test_rounds_that_gain_less_and_less_are_all_counted() -> None:
    """As they do in a run: costs stay, gains fall by a quarter from one round to the next."""
    rounds = [(400.0, 0.75**n) for n in range(20)]
    expected = 20 * 400.0 / sum(gain for _, gain in rounds)
    assert after(rounds) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("clients", [3, 4, 10])
@pytest.mark.parametrize(
    "lie", [(0.0, 1e100, 1.0), (1.0, 1e100, 1e100), (-1e100, 1.0, 1e-30), (1e100, -1e100, 1e99)]
)
def test_no_single_client_rules_the_step(clients: int, lie: tuple[float, float, float]) -> None:
    """With the plain mean for a rule, in round 0, and for good after that."""
    gain, trace, energy = lie
    honest = [report(1.0 + n / 50, 400.0 + 8 * n, client=n) for n in range(clients - 1)]
    liar = report(gain, trace, energy, client=clients - 1)
    update = Update(0, rule(clients).decide([*honest, liar], 1.0, AGREED, K, MEAN))
    assert number(update, "rank") == pytest.approx(400.0, rel=0.35)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("planned", [1, 4, 100])
def test_the_step_is_for_the_clients_that_reported(shared: bool, planned: int) -> None:
    """Where one reports, what the rule for a cohort of one decides; noise is not divided."""
    alone = [report(1.0, 400.0)]
    found = rule(planned, shared).decide(alone, 1.0 if shared else None, AGREED, K, MEAN)
    update = Update(0, found)
    assert number(update, "rank") == pytest.approx(400.0)
    assert number(update, "server_step") == pytest.approx(100 / 500)


def test_costs_that_come_out_negative_allow_no_whole_step() -> None:
    """Losses' noise may make a cost negative; whatever K is, that is no leave for a whole step."""
    assert after([(-30_000.0, 1.0)] * 6) == pytest.approx(1000.0)
    assert after([(500.0, 1.0), (-450.0, 1.0)]) == pytest.approx(1000.0)
    assert after([(8000.0, 1.0), (-1500.0, 1.0)]) == pytest.approx(3250.0, rel=0.2)
    assert after([(500.0, 1.0), (450.0, 1.0)]) == pytest.approx(475.0)
