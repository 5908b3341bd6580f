"""FedBuff's rule by hand, in float64: which version a change began from, and what it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fullfed.config import FederationTable
from fullfed.data.batches import collate
from fullfed.data.tokens import TokenizedExample
from fullfed.engines.simulation import Simulation
from fullfed.engines.under_way import UnderWay
from fullfed.errors import MessageError, UserError
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Plan, Report, decode, encode
from fullfed.federation.method import VisitError
from fullfed.federation.server import RoundResult, run_round
from fullfed.methods import fedbuff
from fullfed.methods.aggregation import TrimmedMean, WeightedMean
from fullfed.methods.buffered import BufferedArrivals
from fullfed.methods.majority import MajorityVote
from fullfed.methods.robust import ClippedMean, CoordinateMedian
from fullfed.training.loss import answer_loss
from methods.tiny import Federation, flat, make_fedavg, samples, setting, tiny_model, weights

ROUNDS, CLIENTS, AT_ONCE, K = 6, 5, 3, 2
COURSE = BufferedArrivals(5, CLIENTS, AT_ONCE, K)
DATA = [samples(1 + n % 4, seed=n) for n in range(CLIENTS)]  # a batch each
RATE = 0.3
Numbers = NDArray[np.float64]


class Buffered(Federation):
    """A federation whose reports may come rounds after they began."""

    def __init__(self, tmp_path: Path, *, options: dict[str, Any] | None = None, **changes: Any):
        model = tiny_model()
        known = {"clients": CLIENTS, "cohort_size": AT_ONCE, **changes}
        chosen = fedbuff.FedBuffOptions(**{"buffer": K, **(options or {})})
        super().__init__(model, fedbuff.build(setting(model, **known), chosen), DATA)
        self.engine = UnderWay(Simulation(self.worker), self.worker.replica, tmp_path)

    def round(self) -> RoundResult:
        number = self.worker.replica.version
        result = run_round(self.method, self.engine, number, self.last, self.model)
        self.worker.deliver(encode(result.update))
        return result


def state(federation: Federation) -> Numbers:
    return flat(weights(federation.model)).numpy()


def change(at: Numbers, examples: list[TokenizedExample]) -> Numbers:
    """-rate * gradient at these weights: what one step of SGD does."""
    model, start = tiny_model(), 0
    with torch.no_grad():
        for parameter in model.parameters():
            end = start + parameter.numel()
            parameter.copy_(torch.from_numpy(at[start:end]).view(parameter.shape))
            start = end
    answer_loss(model, collate(examples)).backward()
    return -RATE * np.concatenate(
        [p.grad.double().numpy().reshape(-1) for p in model.parameters() if p.grad is not None]
    )


Combine = Callable[[list[Numbers], list[int]], Numbers]  # discounted changes, samples


def by_hand(start: Numbers, rate: float, combine: Combine) -> list[Numbers]:
    """Every version of the model."""
    versions = [start]
    for round in range(ROUNDS):
        discounted, sizes = [], []
        for client, plan in COURSE.visits(round).items():
            began = int(plan["version"])  # type: ignore[call-overload]
            weight = 1 / np.sqrt(1 + round - began)
            discounted.append(weight * change(versions[began], DATA[client]))
            sizes.append(len(DATA[client]))
        versions.append(versions[-1] + rate * combine(discounted, sizes))
    return versions


def mean(changes: list[Numbers], sizes: list[int]) -> Numbers:
    """The paper's: 1/K of the sum."""
    return np.asarray(np.sum(changes, axis=0) / K)


def weighted(changes: list[Numbers], sizes: list[int]) -> Numbers:
    return np.asarray(np.average(changes, axis=0, weights=sizes))


def middle(changes: list[Numbers], sizes: list[int]) -> Numbers:
    return np.asarray(np.median(changes, axis=0))


def test_these_rounds_hold_reports_of_several_ages() -> None:
    ages = set[int]()
    for round in range(ROUNDS):
        ages |= {round - int(plan["version"]) for plan in COURSE.visits(round).values()}  # type: ignore[call-overload]
    assert {0, 1, 2} <= ages


@pytest.mark.parametrize(
    ("rule", "combine"),
    [
        (WeightedMean("equal"), mean),
        (WeightedMean("samples"), weighted),
        (CoordinateMedian(), middle),
    ],
)
@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_every_version_is_that_of_a_computation_by_hand(
    rule: Any, combine: Combine, rate: float, tmp_path: Path
) -> None:
    ours = Buffered(tmp_path, aggregation=rule, options={"server_step": rate})
    expected = by_hand(state(ours), rate, combine)
    for version in range(1, ROUNDS + 1):
        ours.round()
        np.testing.assert_allclose(state(ours), expected[version], rtol=0, atol=2e-6)
    plain = by_hand(expected[0], rate, lambda changes, sizes: combine(changes, sizes) * 1.01)
    assert np.abs(plain[-1] - expected[-1]).max() > 1e-4, "the tolerance would hide an error"


@pytest.mark.parametrize("seeds", ["client", "shared"])
def test_a_sketch_of_as_many_coordinates_as_parameters_says_the_same(
    seeds: str, tmp_path: Path
) -> None:
    """The directions are orthogonal then: those of the round that a report is for, whenever it
    began. Each client's own are stacked, and discounted by their weights."""
    count = sum(p.numel() for p in tiny_model().parameters())
    codec = {"name": "sketch", "coordinates": count, "seeds": seeds, "scales": "none"}
    rule = WeightedMean("equal")
    ours = Buffered(tmp_path, codec=codec, aggregation=rule, options={"server_step": 1.0})
    expected = by_hand(state(ours), 1.0, mean)
    for version in range(1, ROUNDS + 1):
        result = ours.round()
        np.testing.assert_allclose(state(ours), expected[version], rtol=0, atol=1e-5)
    assert ("clients" in result.update.tensors) == (seeds == "client")


def test_long_changes_are_found_among_discounted_ones(tmp_path: Path) -> None:
    """Whether reports are stacked or added up."""
    count = sum(p.numel() for p in tiny_model().parameters())
    codec = {"name": "topk", "count": count, "bits": 32}
    options = {"server_step": 1.0}
    stacked = Buffered(tmp_path, codec=codec, aggregation=ClippedMean("equal"), options=options)
    added = Buffered(tmp_path, aggregation=ClippedMean("equal"), options=options)
    for _ in range(ROUNDS):
        stacked.round(), added.round()
        np.testing.assert_allclose(state(stacked), state(added), rtol=0, atol=1e-6)


def test_with_everybody_at_once_and_in_the_buffer_it_is_fedavg(tmp_path: Path) -> None:
    """Then nobody is late: rounds are synchronous."""
    known = {"cohort_size": CLIENTS, "codec": {"name": "dense", "precision": "bfloat16"}}
    ours = Buffered(tmp_path, **known, options={"buffer": CLIENTS})
    model = tiny_model()
    theirs = Federation(model, make_fedavg(setting(model, clients=CLIENTS, **known)), DATA)
    for _ in range(3):
        ours.round(), theirs.round()
        np.testing.assert_array_equal(state(ours), state(theirs))


def test_what_is_sent_and_what_comes_is_counted_in_its_own_round(tmp_path: Path) -> None:
    ours = Buffered(tmp_path)
    for round in range(ROUNDS):
        result = ours.round()
        visits = COURSE.visits(round)
        begun = {c for c, plan in visits.items() if plan["version"] == round}
        assert set(result.down) == begun | set(COURSE.ahead(round))
        assert set(result.up) == set(visits) == set(result.aggregated)
        assert all(count > 0 for count in result.up.values())


@pytest.mark.parametrize(
    "values", [{}, {"version": -1}, {"version": "2"}, {"version": 4}, {"version": 1, "more": 1}]
)
def test_a_plan_without_a_version_of_the_past_is_refused(
    values: dict[str, Any], tmp_path: Path
) -> None:
    ours = Buffered(tmp_path)
    with pytest.raises(VisitError):
        ours.method.train(ours.model, Plan(3, 0, values), DATA[0], None)


def test_what_cannot_be_discounted_or_known_rounds_before_is_refused(tmp_path: Path) -> None:
    normal = {"name": "sketch", "coordinates": 24, "basis": "normal"}
    with pytest.raises(UserError, match=r"codec\.basis: .* take basis = 'sign'"):
        Buffered(tmp_path, codec=normal, options={"server_step": 1.0})
    votes = {"name": "sketch", "coordinates": 24, "bits": 1, "seeds": "shared"}
    with pytest.raises(UserError, match=r"aggregation\.name: a vote cannot count for less"):
        Buffered(tmp_path, codec=votes, aggregation=MajorityVote())
    with pytest.raises(UserError, match="2 of the same parameters are too few"):
        Buffered(tmp_path, aggregation=TrimmedMean())
    short = FederationTable(rounds=1, clients_per_round=2, keep_updates="since-snapshot")
    with pytest.raises(UserError, match=r"federation\.keep_updates: .* keep all updates"):
        Buffered(tmp_path, federation=short)


def test_learning_rates_are_those_of_the_round_in_which_a_visit_begins(tmp_path: Path) -> None:
    ours = Buffered(tmp_path, work={"schedule": "linear"})
    federation = ours.method.setting.federation.model_copy(update={"rounds": 10})
    method = replace(ours.method, setting=replace(ours.method.setting, federation=federation))
    method = replace(method, local=replace(method.local, setting=method.setting))  # type: ignore[type-var]
    begun, whole = [], state(ours)
    for round, version in ((8, 5), (5, 5), (8, 8)):
        plan = Plan(round, 1, {"version": version})
        report = method.train(ours.model, plan, DATA[1], None).report
        begun.append(flat(dict(report.tensors)).numpy())
    np.testing.assert_allclose(begun[0], 0.5 * change(whole, DATA[1]), atol=1e-6)
    np.testing.assert_array_equal(begun[0], begun[1])
    np.testing.assert_allclose(begun[2], 0.2 * change(whole, DATA[1]), atol=1e-6)


class Late:
    """An engine of one visit that fails, and one that reports."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    def exchange(self, plans: Any, seconds: float | None = None) -> Any:
        yield Arrival(0, None, failure="no power", down=7, drawn=True)
        yield Arrival(1, self.payload, train_seconds=2.0, down=9)


def test_failures_wait_as_reports_do(tmp_path: Path) -> None:
    ours = Buffered(tmp_path)
    report = encode(Report(2, 1, 1, 0.5))
    engine = UnderWay(Late(report), ours.worker.replica, tmp_path)
    plans = {client: encode(Plan(2, client, {"version": 0})) for client in (0, 1)}
    sent = list(engine.exchange(plans))
    assert [(a.sender, a.payload, a.down, a.under_way) for a in sent] == [
        (0, None, 7, True),
        (1, None, 9, True),
    ]
    ours.worker.replica.version = 2
    engine._engine = Late(b"")
    quiet = list(engine._arrived(2))
    assert [(a.sender, a.payload, a.failure, a.down, a.drawn) for a in quiet] == [
        (0, None, "no power", 0, True),
        (1, report, "", 0, False),
    ]
    assert decode(quiet[1].payload or b"", Report).loss == 0.5
    assert not list(engine._arrived(2))


def test_a_version_is_a_number() -> None:
    assert Plan(4, 0).version == 4
    assert Plan(4, 0, {"version": 1}).version == 1
    for wrong in (True, 1.0, "1", -1, None):
        with pytest.raises(MessageError):
            Plan(4, 0, {"version": wrong}).version  # noqa: B018
