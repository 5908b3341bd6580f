"""Rules: the mean is the mean; a trimmed one goes no further than the honest, whoever lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Report, decode, encode
from fullfed.federation.server import run_round
from fullfed.federation.tensors import Computed
from fullfed.methods.aggregation import Aggregation, TrimmedMean, WeightedMean
from fullfed.methods.catalogue import METHODS
from fullfed.methods.codecs.codec import Contribution
from fullfed.methods.fedcybgd import FedCyBGDOptions
from fullfed.methods.fedcybgd import build as build_fedcybgd
from fullfed.methods.scopes import LoraOptions
from fullfed.training.layers import layer_names
from methods.lora import federate, three_clients
from methods.tiny import (
    Federation,
    chosen,
    flat,
    make_fedavg,
    make_ferret,
    samples,
    setting,
    sgd,
    tiny_model,
    weights,
)
from training.architectures import make

NUMBERS = st.floats(-1e6, 1e6, width=32)
TINY = 1e-37  # below it float32 has fewer digits


@st.composite
def rounds(draw: st.DrawFn, fewest: int = 1) -> tuple[NDArray[np.float32], list[int]]:
    """Of each client some numbers, (clients, numbers), and how many samples it has."""
    clients, size = draw(st.integers(fewest, 12)), draw(st.integers(1, 6))
    row = st.lists(NUMBERS, min_size=size, max_size=size)
    rows = draw(st.lists(row, min_size=clients, max_size=clients))
    counts = draw(st.lists(st.integers(1, 1000), min_size=clients, max_size=clients))
    return np.array(rows, dtype=np.float32), counts


def result(
    rule: Aggregation, rows: NDArray[Any], counts: Sequence[int] | None = None, **more: Any
) -> Contribution:
    """What a rule makes of each client's numbers."""
    total = rule.begin()
    for client, row in enumerate(rows):
        report = Report(0, client, counts[client] if counts else 1, 1.0)
        extra = {name: value[client] for name, value in more.items()}
        total.add(report, Contribution({"x": torch.from_numpy(row.copy())}, **extra))
    return total.result()


def trimmed(rows: NDArray[Any], trim: float) -> NDArray[np.float64]:
    """By definition, one number after another."""
    clients = len(rows)
    out = math.floor(Fraction(str(trim)) * clients)
    columns = (sorted(float(number) for number in column) for column in rows.T)
    return np.array([math.fsum(c[out : clients - out]) / (clients - 2 * out) for c in columns])


# The mean


@settings(deadline=None)
@given(rounds())
def test_the_mean_is_that_weighted_by_samples(drawn: tuple[Any, list[int]]) -> None:
    rows, counts = drawn
    shares = np.array(counts) / sum(counts)
    size = np.abs(rows).max(axis=0)
    ours = result(WeightedMean(), rows, counts).tensors["x"].double().numpy()
    assert np.all(np.abs(ours - shares @ rows.astype(np.float64)) <= 1e-6 * len(rows) * size + TINY)


@settings(deadline=None)
@given(rounds())
def test_equal_weights_are_the_plain_mean(drawn: tuple[Any, list[int]]) -> None:
    rows, counts = drawn
    size = np.abs(rows).max(axis=0)
    ours = result(WeightedMean("equal"), rows, counts).tensors["x"].double().numpy()
    wanted = rows.astype(np.float64).mean(axis=0)
    assert np.all(np.abs(ours - wanted) <= 1e-6 * len(rows) * size + TINY)


@settings(deadline=None)
@given(rounds())
def test_a_mean_in_float64_is_exact_to_its_own_precision(drawn: tuple[Any, list[int]]) -> None:
    """Coordinates and accumulators are averaged so."""
    rows, counts = drawn
    wide = rows.astype(np.float64)
    shares = np.array(counts) / sum(counts)
    size = np.abs(wide).max(axis=0)
    ours = result(WeightedMean(), wide, counts).tensors["x"]
    assert ours.dtype == torch.float64
    assert np.all(np.abs(ours.numpy() - shares @ wide) <= 1e-14 * len(rows) * size)


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=6), st.integers(1, 1000))
def test_the_mean_of_one_client_is_exact(row: list[float], samples: int) -> None:
    rows = np.array([row], dtype=np.float32)
    ours = result(WeightedMean(), rows, [samples]).tensors["x"].numpy()
    assert ours.tobytes() == rows[0].tobytes()


def test_contributions_are_left_as_they_are() -> None:
    """They may be views of reports, which are used again."""
    for rule in (WeightedMean(), TrimmedMean()):
        total, own = rule.begin(), [torch.full((3,), float(n)) for n in range(5)]
        for client, tensor in enumerate(own):
            total.add(Report(0, client, 1 + client, 1.0), Contribution({"x": tensor}))
        total.result()
        assert [tensor.tolist() for tensor in own] == [[float(n)] * 3 for n in range(5)]


def test_the_means_noise_is_that_of_independent_errors() -> None:
    """Shares 1/4 and 3/4: their squares times each one's."""
    rows = np.ones((2, 1), np.float32)
    ours = result(WeightedMean(), rows, [1, 3], noise=[8.0, 16.0])
    assert ours.noise == pytest.approx(8 / 16 + 16 * 9 / 16)


def test_sums_count_everybody_once_whatever_a_report_weighs() -> None:
    sums = [{"visits": torch.tensor([1.0, 2.0])}, {"visits": torch.tensor([3.0, 0.0])}]
    ours = result(WeightedMean(), np.ones((2, 1), np.float32), [1, 99], sums=sums)
    assert ours.sums["visits"].tolist() == [4.0, 2.0]


# The trimmed mean


@settings(deadline=None)
@given(rounds(fewest=5), st.floats(0.2, 0.49))
def test_the_trimmed_mean_is_a_sort_number_by_number(
    drawn: tuple[Any, list[int]], trim: float
) -> None:
    rows, counts = drawn
    size = np.abs(rows).max(axis=0)
    ours = result(TrimmedMean(trim), rows, counts).tensors["x"].double().numpy()
    assert np.all(np.abs(ours - trimmed(rows, trim)) <= 1e-6 * size + TINY)


@settings(deadline=None)
@given(
    honest=st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=4, max_size=4),
    lie=st.lists(st.sampled_from([1e20, -1e20]), min_size=3, max_size=3),
    liar=st.integers(0, 4),
)
def test_one_liar_of_five_moves_nothing_beyond_the_honest(
    honest: list[list[float]], lie: list[float], liar: int
) -> None:
    rows = np.array([*honest[:liar], lie, *honest[liar:]], dtype=np.float32)
    ours = result(TrimmedMean(0.2), rows, [10**6 if n == liar else 1 for n in range(5)])
    low, high = np.min(honest, axis=0), np.max(honest, axis=0)
    slack = 1e-6 * np.maximum(abs(low), abs(high)) + TINY
    told = ours.tensors["x"].double().numpy()
    assert np.all((low - slack <= told) & (told <= high + slack))


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=4, max_size=4), st.sampled_from([1e300, -1e300]))
def test_one_liar_of_five_moves_no_scalar_beyond_the_honest(
    honest: list[float], lie: float
) -> None:
    rule = TrimmedMean(0.2)
    told = rule.scalar([*honest, lie])
    assert min(honest) <= told or math.isclose(told, min(honest), rel_tol=1e-12)
    assert told <= max(honest) or math.isclose(told, max(honest), rel_tol=1e-12)
    assert told == pytest.approx(trimmed(np.array([[n] for n in [*honest, lie]]), 0.2)[0])


@pytest.mark.parametrize("numbers", [[3.0], [1.0, 9.0], [1.0, 2.0, 4.0], [0.0, 1.0, 2.0, 6.0]])
def test_the_means_scalar_is_the_mean_where_no_number_stands_apart(numbers: list[float]) -> None:
    mean = math.fsum(numbers) / len(numbers)
    assert WeightedMean().scalar(numbers) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("wild", [1e3, 1e100, 1.7e308, -1e100])
def test_a_number_that_stands_apart_counts_as_near_the_median(wild: float) -> None:
    """Of 1, 2, 3, 4 and the wild one the median is 3 or 2, and the median distance from it 1."""
    nearest = 3 + 5 if wild > 0 else 2 - 5
    expected = (1 + 2 + 3 + 4 + nearest) / 5
    assert WeightedMean().scalar([1.0, wild, 2.0, 3.0, 4.0]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("trim", "clients", "out"),
    [(0.2, 5, 1), (0.2, 9, 1), (0.2, 10, 2), (0.29, 100, 29), (0.1, 30, 3), (0.49, 100, 49)],
)
def test_the_share_that_is_left_out_is_rounded_down(trim: float, clients: int, out: int) -> None:
    rule = TrimmedMean(trim)
    assert (rule.left_out(clients), rule.kept(clients)) == (out, clients - 2 * out)


def test_a_trimmed_count_is_that_of_as_many_as_there_are() -> None:
    """Of five clients' visits 1, 1, 2, 2 and a liar's million the middle three are averaged."""
    visits = [{"visits": torch.tensor([v])} for v in (1.0, 1.0, 2.0, 2.0, 1e6)]
    ours = result(TrimmedMean(0.2), np.ones((5, 1), np.float32), sums=visits)
    assert ours.sums["visits"].item() == pytest.approx(5 * 5 / 3)


# In a round


def five(trim: float | None = 0.2, codec: dict[str, Any] | None = None) -> Federation:
    model = tiny_model()
    rule = WeightedMean("equal") if trim is None else TrimmedMean(trim)
    made = setting(model, clients=5, aggregation=rule, codec=codec or {"name": "dense"})
    return Federation(model, make_fedavg(made), [samples(4, seed=n) for n in range(5)])


def lied(federation: Federation, liar: int, size: float) -> list[Arrival]:
    """What the clients send; one of them numbers of this size and a loss to match."""
    arrivals = []
    for plan in federation.method.plans(0, None):
        arrival = federation.worker.visit(encode(plan))
        if plan.client == liar:
            report = decode(arrival.payload or b"", Report)
            tensors = {name: torch.full_like(t, size) for name, t in report.tensors.items()}
            told = replace(report, tensors=tensors, loss=size, samples=10**9)
            arrival = replace(arrival, payload=encode(told))
        arrivals.append(arrival)
    return arrivals


class Post:
    """An engine that brings what it was given."""

    def __init__(self, arrivals: list[Arrival]) -> None:
        self._arrivals = arrivals

    def exchange(self, plans: object) -> Any:
        yield from self._arrivals


@pytest.mark.parametrize("size", [1e20, -1e20])
def test_a_liar_in_a_round_moves_the_model_no_further_than_the_honest(size: float) -> None:
    federation = five()
    arrivals = lied(federation, 2, size)
    honest = [decode(a.payload or b"", Report) for a in arrivals if a.sender != 2]
    outcome = run_round(federation.method, Post(arrivals), 0, None, federation.model)
    for name, told in outcome.update.tensors.items():
        stacked = torch.stack([report.tensors[name] for report in honest])
        assert bool((told >= stacked.amin(0) - 1e-6).all())
        assert bool((told <= stacked.amax(0) + 1e-6).all())
    losses = [report.loss for report in honest]
    assert outcome.loss is not None
    assert min(losses) <= outcome.loss <= max(losses)


def test_a_trimmed_round_is_the_trimmed_mean_of_the_weights() -> None:
    federation = five()
    arrivals = lied(federation, -1, 0.0)
    sent = [decode(a.payload or b"", Report).tensors for a in arrivals]
    federation.round()
    for name, weight in weights(federation.model).items():
        rows = np.stack([tensors[name].flatten().numpy() for tensors in sent])
        wanted = torch.from_numpy(trimmed(rows, 0.2)).view(weight.shape)
        torch.testing.assert_close(weight.double(), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "codec",
    [
        {"name": "sketch", "coordinates": 60, "seeds": "shared"},
        {"name": "topk", "count": 60},
        {"name": "dense", "precision": "int8", "error_feedback": True},
    ],
    ids=lambda codec: codec["name"],
)
def test_codecs_whose_numbers_have_one_meaning_can_be_trimmed(codec: dict[str, Any]) -> None:
    federation = five(codec=codec)
    before = flat(weights(federation.model))
    for _ in range(2):
        assert federation.round().aggregated == (0, 1, 2, 3, 4)
    assert not torch.equal(flat(weights(federation.model)), before)


def test_too_few_reports_to_trim_end_the_round_in_one_sentence() -> None:
    federation = five()
    arrivals = lied(federation, -1, 0.0)
    with pytest.raises(UserError, match=r"^aggregation\.name: .* 2 of the same") as caught:
        run_round(federation.method, Post(arrivals[:2]), 0, None, federation.model)
    assert "\n" not in str(caught.value)
    for left in (3, 4):  # still without the smallest and the largest
        result = run_round(federation.method, Post(arrivals[:left]), 0, None, federation.model)
        assert len(result.aggregated) == left


# What does not go together


@pytest.mark.parametrize("seeds", ["client", "shared"])
def test_own_directions_cannot_be_trimmed(seeds: str) -> None:
    made = setting(tiny_model(), clients=5, aggregation=TrimmedMean())
    if seeds == "shared":
        assert make_ferret(made, coordinates=9, seeds=seeds).aggregation == TrimmedMean()
        return
    with pytest.raises(UserError, match=r"^aggregation\.name: .*take seeds = 'shared'") as caught:
        make_ferret(made, coordinates=9, seeds=seeds)
    assert "\n" not in str(caught.value)


def test_factors_side_by_side_cannot_be_trimmed() -> None:
    with pytest.raises(UserError, match=r"^aggregation\.name: "):
        federate("flora", tiny_model(), three_clients(), aggregation=TrimmedMean(0.4))
    options = LoraOptions(rank=2)
    assert METHODS["fedit"].options is type(options)
    federate("fedit", tiny_model(), three_clients(), options, aggregation=TrimmedMean(0.4)).round()


@pytest.mark.parametrize(("clients", "cohort"), [(2, 2), (9, 1)])
def test_a_cohort_too_small_to_trim_is_refused(clients: int, cohort: int) -> None:
    made = setting(tiny_model(), clients=clients, cohort_size=cohort, aggregation=TrimmedMean())
    with pytest.raises(UserError, match=rf"^aggregation\.name: .* {cohort} of the same"):
        make_fedavg(made)


@pytest.mark.parametrize(
    ("clients", "together", "fits"),
    [(6, 1, False), (6, 2, False), (6, 3, True), (7, 3, False), (9, 3, True)],
)
def test_a_cycle_needs_clients_enough_on_every_block(
    clients: int, together: int, fits: bool
) -> None:
    """Seven clients in visits of three: one visit is of two clients, or of one."""
    model = make("llama")
    made = setting(
        model,
        clients=clients,
        cohort_size=together,
        layers=layer_names(model),
        aggregation=TrimmedMean(0.34),
        local=sgd(0.1),
    )
    options = FedCyBGDOptions(clients_per_block=together, order="rotating")
    if fits:
        assert build_fedcybgd(made, options).aggregation == TrimmedMean(0.34)
        return
    with pytest.raises(UserError, match=r"^aggregation\.name: .* too few; have"):
        build_fedcybgd(made, options)


@pytest.mark.parametrize("trim", [0.0, 0.5, -0.1, math.nan])
def test_a_share_that_trims_nothing_or_all_is_refused(trim: float) -> None:
    with pytest.raises(UserError, match=r"^aggregation: trim is a share above 0 and below 0\.5"):
        chosen("fedavg", aggregation={"name": "trimmed-mean", "trim": trim})


def test_unknown_rules_and_options_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"there is no aggregation 'bulyan'; choose among mean, tr"):
        chosen("fedavg", aggregation={"name": "bulyan"})
    with pytest.raises(UserError, match=r"there is no key 'aggregation\.trim'"):
        chosen("fedavg", aggregation={"name": "mean", "trim": 0.2})
    with pytest.raises(UserError, match=r"^aggregation\.weights: "):
        chosen("fedavg", aggregation={"name": "mean", "weights": "loss"})


def test_a_discounted_report_is_not_in_memory_whole() -> None:
    seen: list[str] = []

    def one(name: str) -> torch.Tensor:
        seen.append(name)
        return torch.ones(2)

    half = Contribution(Computed(["a", "b"], one)).times(0.5)
    assert torch.equal(half.tensors["b"], torch.full((2,), 0.5))
    assert list(half.tensors) == ["a", "b"]
    assert seen == ["b"]
