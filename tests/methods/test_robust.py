"""Rules against liars: byzfl's results, the definitions by brute force, and what liars can do."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Report
from fullfed.methods.catalogue import AGGREGATIONS
from fullfed.methods.codecs.codec import Change, Contribution
from fullfed.methods.codecs.products import products_of, products_of_sketches
from fullfed.methods.robust import GeometricMedian, MultiKrum, gram, opposed
from fullfed.runs.account import account_of
from fullfed.sketch import SignBasis
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


def pulling_against(x: Any, weights: Any, most: float) -> list[int]:
    """Who lies against the others' sum and at least half of them, one after another; by loops."""
    kept, found = list(range(len(x))), []
    while 2 * (len(found) + 1) < len(x):
        cosines = {}
        for one in kept:
            others = [other for other in kept if other != one]
            rest = sum(weights[other] * x[other] for other in others)
            against = sum(x[one] @ x[other] < 0 for other in others)
            if 2 * against >= len(others) and np.linalg.norm(x[one]) * np.linalg.norm(rest) > 0:
                cosines[one] = x[one] @ rest / np.linalg.norm(x[one]) / np.linalg.norm(rest)
        worst = min(cosines, key=cosines.__getitem__, default=None)
        if worst is None or cosines[worst] >= -most:
            break
        kept.remove(worst)
        found.append(worst)
    return found


long_rows = st.integers(3, 9).flatmap(
    lambda count: st.integers(0, 2**32 - 1).map(
        lambda seed: np.random.default_rng(seed).normal(0.05, 1.0, (count, 400))
    )
)


@given(long_rows, st.lists(st.floats(0.1, 5.0), min_size=9, max_size=9))
def test_who_pulls_against_the_others_is_found_by_the_definition(x: Any, weights: Any) -> None:
    x[::4] *= -1.0
    expected = pulling_against(x, weights, 3 / math.sqrt(400))
    found = products_of([contribution(row) for row in x])
    assert opposed(found, weights[: len(x)]) == expected


def unlike(count: int, size: int = 2000, seed: int = 0) -> Any:
    """Changes that have little in common: a cosine of 0.1 with each other."""
    generator = np.random.default_rng(seed)
    return generator.normal(0.0, 0.1, size) + generator.normal(0.0, 0.3, (count, size))


def test_nobody_is_left_out_for_having_learned_something_else() -> None:
    for seed in range(20):
        generator = np.random.default_rng(seed)
        for x in (unlike(10, seed=seed), generator.normal(0.0, 1.0, (10, 2000))):
            assert opposed(products_of([contribution(row) for row in x]), [0.1] * 10) == []


@pytest.mark.parametrize("liars", [1, 3])
def test_few_who_say_the_opposite_together_do_not_drive_the_others_out(liars: int) -> None:
    """Liars who all send one vector agree with each other more than any honest clients do."""
    for seed in range(20):
        x = unlike(10, seed=seed)
        honest = x[liars:].mean(axis=0)
        x[:liars] = -1.5 * honest * np.linalg.norm(x[-1]) / np.linalg.norm(honest)
        found = opposed(products_of([contribution(row) for row in x]), [0.1] * 10)
        assert sorted(found) == list(range(liars))


def test_changes_on_directions_of_their_own_are_compared_without_bias() -> None:
    """In the mean over seeds the products are those of the changes; and they lie as far from it as
    is said."""
    size, k, generator = 4096, 1024, torch.Generator().manual_seed(0)
    changes = torch.randn(3, size, generator=generator)
    changes[1] = 0.6 * changes[0] - 0.8 * changes[1]
    true = changes.double() @ changes.double().T
    cosines = []
    for seed in range(200):
        bases = [SignBasis(seed, 0, owner=n, coordinates=k) for n in range(3)]
        coordinates = [b.project([c]) for b, c in zip(bases, changes, strict=True)]
        found = products_of_sketches(bases, coordinates, size, 1.0)
        assert found is not None
        cosines.append(found.inner / true.diagonal().outer(true.diagonal()).sqrt())
    each = torch.stack(cosines)
    apart = each[:, 0, 2]  # of nearly a right angle
    assert found.chance == math.sqrt(size) / k
    assert float(apart.std()) == pytest.approx(found.chance, rel=0.15)
    assert products_of_sketches(bases, iter(()), size * 100, 1.0) is None, "by chance alone"
    off = each.mean(dim=0) - true / true.diagonal().outer(true.diagonal()).sqrt()
    assert float(off.abs().max()) < 4 * found.chance / math.sqrt(len(each))


@given(rows, st.lists(st.integers(1, 50), min_size=8, max_size=8))
def test_a_clipped_mean_counts_long_changes_by_what_is_not_long_over_their_length(
    points: list[list[float]], counts: list[int]
) -> None:
    x, weighed = np.array(points), np.array(counts[: len(points)], dtype=float)
    norms = np.linalg.norm(x, axis=1)
    most = 1.5 * np.sort(norms)[(len(x) - 1) // 2]
    counted = weighed * np.minimum(1.0, (most / np.maximum(norms, 1e-150)) ** 2)
    share = counted / weighed.sum()
    for number in opposed(products_of([contribution(row) for row in points]), [*share]):
        counted[number] = 0.0
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
def test_who_pulls_against_the_others_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, seeds: str
) -> None:
    """One of four takes a step uphill, on the same samples as the others: the round is as it is
    without its report, and the account says so."""
    rule = chosen("ferret", options={"coordinates": 50}, aggregation={"name": "clipped-mean"})
    model = tiny_model()
    data = [samples(8, 0)] * 4
    table = setting(model, clients=4, aggregation=rule.aggregation)
    count = sum(p.numel() for p in model.parameters())
    method = make_ferret(table, coordinates=count, seeds=seeds)
    federation = Federation(model, method, data)
    encoded = type(method.codec).encode

    def uphill(codec: Any, change: Change, plan: Any, shapes: Any) -> Any:
        if plan.client == 2:
            turned = {n: 2 * change.before[n] - p.detach() for n, p in change.after.items()}
            change = replace(change, after=turned)
        return encoded(codec, change, plan, shapes)

    monkeypatch.setattr(type(method.codec), "encode", uphill)
    result = federation.round()
    assert result.update.values["left_out"] == [2]
    assert account_of(result, 0)["left_out"] == [2]
    assert result.aggregated == (0, 1, 2, 3), "it was let in, and counted for nothing"
    passed = method.skipped(1, result.update, 1)
    assert "left_out" not in passed.values
    method.check_values(result.update)
    named = replace(result.update, values={**result.update.values, "left_out": ["x"]})
    with pytest.raises(MessageError, match="does not name clients under 'left_out'"):
        method.check_values(named)


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
