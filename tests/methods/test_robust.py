"""Rules against liars: byzfl's results, the definitions by brute force, and what liars can do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fullfed.errors import UserError
from fullfed.federation.messages import Report
from fullfed.methods.catalogue import AGGREGATIONS
from fullfed.methods.codecs.codec import Contribution
from fullfed.methods.robust import GeometricMedian, MultiKrum, gram
from methods.make_byzfl import vectors
from methods.tiny import (
    Federation,
    chosen,
    make_fedavg,
    make_ferret,
    samples,
    setting,
    tiny_model,
    weights,
)

BYZFL = json.loads((Path(__file__).parent / "byzfl.json").read_text())
RULES = ("median", "krum", "geometric-median", "clipped-mean", "trimmed-mean")


def contribution(row: Any, noise: float = 0.0) -> Contribution:
    """A vector in two tensors."""
    tensor = torch.as_tensor(np.asarray(row, dtype=np.float64))
    return Contribution({"a": tensor[:4].reshape(2, 2), "b": tensor[4:]}, noise)


def combined(name: str, rows: Any, samples: Any = None, **options: Any) -> Any:
    """What a rule makes of vectors."""
    entry = AGGREGATIONS[name]
    total = entry.build(entry.options(**options)).begin()
    for number, row in enumerate(rows):
        count = 1 if samples is None else samples[number]
        total.add(Report(0, number, count, 1.0), contribution(row))
    result = total.result().tensors
    return np.concatenate([result["a"].flatten().numpy(), result["b"].numpy()])


@pytest.mark.parametrize("count", BYZFL)
@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum", "geometric-median"])
def test_a_rule_is_byzfls(name: str, count: str) -> None:
    got = combined(name, vectors(int(count)))
    assert got == pytest.approx(BYZFL[count][name], rel=1e-6, abs=1e-6)


rows = st.lists(st.lists(st.floats(-10, 10), min_size=5, max_size=5), min_size=3, max_size=8)


@given(rows)
def test_no_point_is_nearer_to_all_than_the_geometric_median(points: list[list[float]]) -> None:
    x = np.array(points)
    got = combined("geometric-median", points)

    def total(point: Any) -> float:
        return float(np.linalg.norm(x - point, axis=1).sum())

    best = total(got)
    slack = 1e-5 * (1 + best)  # it comes slowly to a point that is almost one of the given
    assert best <= total(np.median(x, axis=0)) + slack
    assert best <= total(x.mean(axis=0)) + slack
    assert all(best <= total(point) + slack for point in x)
    for axis in range(x.shape[1]):
        for step in (1e-3, -1e-3):
            assert best <= total(got + step * np.eye(x.shape[1])[axis]) + slack


@given(rows)
def test_krum_leaves_out_who_stands_apart(points: list[list[float]]) -> None:
    """By brute force: of each point the sum of its smallest squared distances."""
    x = np.array(points)
    count = len(x)
    kept = count - max(int(0.2 * count), 1)
    squares = ((x[:, None] - x[None, :]) ** 2).sum(axis=2)
    scores = np.sort(squares, axis=1)[:, :kept].sum(axis=1)
    found = MultiKrum().weights(gram([contribution(point) for point in points]))
    chosen_ones = [number for number, weight in enumerate(found) if weight]
    assert len(chosen_ones) == kept
    assert sum(found) == pytest.approx(1.0)
    others = set(range(count)) - {*chosen_ones}
    assert max(scores[n] for n in chosen_ones) <= min(scores[n] for n in others) + 1e-6


@given(rows, st.lists(st.integers(1, 50), min_size=8, max_size=8))
def test_a_clipped_mean_counts_long_changes_by_what_is_not_long_over_their_length(
    points: list[list[float]], counts: list[int]
) -> None:
    x, weighed = np.array(points), np.array(counts[: len(points)], dtype=float)
    norms = np.linalg.norm(x, axis=1)
    most = 1.5 * np.sort(norms)[(len(x) - 1) // 2]
    counted = weighed * np.minimum(1.0, (most / np.maximum(norms, 1e-150)) ** 2)
    expected = counted @ x / max(counted.sum(), weighed.sum() / 2)
    found = combined("clipped-mean", points, counts)
    assert found == pytest.approx(expected, abs=1e-9)
    assert np.linalg.norm(found) <= 2 * most + 1e-9, "whatever a liar sends and weighs"


def test_a_clipped_mean_of_like_changes_is_as_long_as_they_are() -> None:
    """However unlike their lengths: 2, 2, 4 and 8 counting 1, 1, 9/16 and 9/64."""
    found = combined("clipped-mean", [np.full(5, length) for length in (2.0, 2.0, 4.0, 8.0)])
    assert found == pytest.approx(np.full(5, 7.375 / 2.703125))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("lie", [-9.0, 100.0, 1e6])
def test_one_liar_of_ten_moves_the_result_little(name: str, lie: float) -> None:
    """No further from the honest mean than honest clients lie from it, where the mean goes away."""
    generator = np.random.default_rng(1)
    honest = generator.normal(1.0, 0.5, (9, 50))
    everybody = [*honest, lie * honest.mean(axis=0)]
    centre = honest.mean(axis=0)
    spread = np.linalg.norm(honest - centre, axis=1).max()
    off = np.linalg.norm(combined(name, everybody) - centre)
    assert off < spread
    assert np.linalg.norm(combined("mean", everybody) - centre) > spread * min(abs(lie) / 20, 1.0)


def test_where_nobody_lies_and_all_say_the_same_every_rule_says_it() -> None:
    for name in RULES:
        assert combined(name, [np.arange(9.0)] * 4) == pytest.approx(np.arange(9.0))
        assert combined(name, [np.zeros(9)] * 4) == pytest.approx(np.zeros(9))


def test_the_noise_of_codes_is_that_of_the_weights() -> None:
    held = MultiKrum().begin()
    for number in range(5):
        held.add(Report(0, number, 1, 1.0), contribution(np.full(6, float(number)), noise=2.0))
    assert held.result().noise == pytest.approx(2.0 / 4)
    points = [contribution(np.full(6, float(n)), noise=2.0) for n in range(5)]
    found = GeometricMedian().weights(gram(points))
    assert found[2] == pytest.approx(1.0, abs=1e-3), "the middle one is the median"


@pytest.mark.parametrize("seeds", ["client", "shared"])
def test_a_rule_that_only_scales_goes_with_each_clients_own_directions(seeds: str) -> None:
    """A client whose change is far longer than the others counts as long as the median."""
    rule = chosen("ferret", options={"coordinates": 50}, aggregation={"name": "clipped-mean"})
    model = tiny_model()
    data = [samples(8, seed) for seed in range(4)]
    table = setting(model, clients=4, aggregation=rule.aggregation)
    federation = Federation(model, make_ferret(table, coordinates=50, seeds=seeds), data)
    before = weights(federation.model)
    federation.round()
    after = weights(federation.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_what_does_not_go_together_is_said_at_the_start() -> None:
    model = tiny_model()
    own = setting(model, clients=4, aggregation=chosen("ferret", options={"coordinates": 9},
                  aggregation={"name": "krum"}).aggregation)  # fmt: skip
    with pytest.raises(UserError, match="each client's own directions"):
        make_ferret(own, coordinates=50)
    clipped = setting(model, clients=4, aggregation=chosen(
        "fedavg", aggregation={"name": "clipped-mean"}).aggregation)  # fmt: skip
    with pytest.raises(UserError, match="measures how large changes are"):
        make_fedavg(clipped)
    with pytest.raises(UserError, match="krum leaves out those who stand apart from the others"):
        make_fedavg(setting(model, clients=2, aggregation=MultiKrum()))
    assert math.isfinite(sum(MultiKrum().weights(torch.eye(3, dtype=torch.float64))))
