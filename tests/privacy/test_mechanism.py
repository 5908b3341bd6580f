"""Noise has the law that is accounted for, the account is what others reckon, and a client never
counts for more than its share."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fullfed.config import FederationTable
from fullfed.config_privacy import PrivacyTable
from fullfed.engines.node_limits import LimitError, Limits
from fullfed.errors import UserError
from fullfed.privacy.accountant import Account, noise_for
from fullfed.privacy.calibration import client_mechanism
from fullfed.privacy.keystream import KeyStream, derived
from fullfed.privacy.mechanism import Mechanism, skellam
from privacy.epsilons import gaussian_epsilon, sampled_epsilon

KEY = derived(b"tests of noise", "key")


@pytest.mark.parametrize("variance", [0.5, 6.0, 300.0])
def test_noise_is_skellam(variance: float) -> None:
    """The chi-square test against scipy's probabilities."""
    drawn = skellam(variance, 40_000, KEY)
    law = stats.skellam(variance / 2, variance / 2)
    edge = math.ceil(2.5 * math.sqrt(variance))
    values = np.arange(-edge, edge + 1)
    counts = [np.sum(drawn < -edge), *(np.sum(drawn == v) for v in values), np.sum(drawn > edge)]
    expected = np.array([law.cdf(-edge - 1), *law.pmf(values), law.sf(edge)]) * len(drawn)
    assert stats.chisquare(counts, expected * (sum(counts) / expected.sum())).pvalue > 1e-3


def test_shares_of_noise_add_up_to_the_noise() -> None:
    account = Account(noise=1.5, rate=1.0, delta=1e-5)
    whole = Mechanism(account, clip=2.0, cohort=8, parts=None, quantile=None)
    shared = Mechanism(account, clip=2.0, cohort=8, parts=6, quantile=None)
    grid = whole.grid(5000, 2.0, 16, 8)
    due = whole.variance(5000, grid, 2.0)
    total = sum(shared.noise(5000, grid, 2.0, derived(KEY, f"client {n}")) for n in range(6))
    for noise in (total, whole.noise(5000, grid, 2.0, KEY)):
        assert np.var(noise) == pytest.approx(due, rel=0.1)  # the standard error is 0.02
        assert abs(np.mean(noise)) < 5 * math.sqrt(due / 5000)
    # In the numbers' own measure: 1.5 times the clip, and what rounding adds to it.
    assert math.sqrt(due) * grid.unit == pytest.approx(3.0, rel=0.02)


@settings(max_examples=50)
@given(st.integers(1, 400), st.floats(1e-3, 1e3), st.floats(0.01, 100), st.booleans())
def test_no_client_is_longer_than_the_sensitivity(
    count: int, clip: float, times: float, counted: bool
) -> None:
    mechanism = Mechanism(Account(1.0, 1.0, 1e-5), clip, 5, None, 0.5 if counted else None)
    numbers = np.random.default_rng(count).normal(size=count) * clip * times / math.sqrt(count)
    grid = mechanism.grid(count, clip, 16, 5)
    integers = mechanism.rounded(numbers, grid, clip, KeyStream(KEY))
    assert len(integers) == count + mechanism.extra
    assert np.linalg.norm(integers) <= mechanism.sensitivity(count, grid, clip) * (1 + 1e-12)
    norm = float(np.linalg.norm(numbers))
    kept = numbers * min(1.0, clip / norm) if norm else numbers
    most = grid.most * grid.unit
    error = integers[:count] * grid.unit - np.clip(kept, -most, most)
    assert np.abs(error).max() <= grid.unit * (1 + 1e-9)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (2.0, 12), (0.7, 3)])
def test_epsilon_of_fixed_cohorts_is_the_formula_s(noise: float, rounds: int) -> None:
    due = gaussian_epsilon(noise / math.sqrt(rounds), 1e-5)
    assert Account(noise, 1.0, 1e-5).epsilon(rounds) == pytest.approx(due, rel=1e-3)


@pytest.mark.parametrize(("noise", "rate", "rounds"), [(1.0, 0.1, 12), (0.8, 0.02, 40)])
def test_epsilon_of_poisson_cohorts_is_what_convolution_gives(
    noise: float, rate: float, rounds: int
) -> None:
    due = sampled_epsilon({(noise, rate): rounds}, 1e-5)
    assert Account(noise, rate, 1e-5).epsilon(rounds) == pytest.approx(due, rel=0.01)


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_the_noise_that_is_found_keeps_the_budget_and_not_much_more(rate: float) -> None:
    noise = noise_for(4.0, 1e-5, rate, 10)
    assert Account(noise, rate, 1e-5).epsilon(10) <= 4.0
    assert Account(noise / 1.01, rate, 1e-5).epsilon(10) > 4.0


def test_the_clip_follows_the_quantile() -> None:
    """Norms are log-normal; from far too large a clip, and from far too small a one."""
    norms = np.exp(np.random.default_rng(0).normal(1.0, 0.5, 200))
    for start in (0.1, 100.0):
        mechanism = Mechanism(Account(0.5, 1.0, 1e-5), start, 200, None, 0.3)
        clip = start
        for number in range(80):
            grid = mechanism.grid(50, clip, 24, 200)
            directions = np.random.default_rng(number).normal(size=(200, 50))
            directions *= (norms / np.linalg.norm(directions, axis=1))[:, None]
            stream = KeyStream(derived(KEY, f"round {number}"))
            total = sum(mechanism.rounded(d, grid, clip, stream) for d in directions)
            total = total + mechanism.noise(50, grid, clip, derived(KEY, f"noise {number}"))
            clip = mechanism.next_clip(clip, float(total[-1]) * grid.unit)
        assert clip == pytest.approx(np.quantile(norms, 0.3), rel=0.15)


def table(**changes: object) -> PrivacyTable:
    known = {"protects": "client", "epsilon": 4.0, "delta": 1e-3, "clip": 1.0}
    return PrivacyTable.model_validate({**known, **changes})


def test_a_node_that_asks_for_an_epsilon_counts_on_nothing_it_cannot_see() -> None:
    limits = Limits(most_epsilon=4.0)
    limits._check_privacy(table(secure_sum=True))
    for changes, said in (
        ({}, "not seen here"),
        ({"secure_sum": True, "sampling": "poisson"}, "the server's word"),
        ({"secure_sum": True, "delta": 0.5}, "most_delta"),
        ({"secure_sum": True, "epsilon": 5.0}, "the run's is 5, not 4"),
    ):
        with pytest.raises(LimitError, match=said):
            limits._check_privacy(table(**changes))


def test_sampling_counts_only_where_it_is_poisson() -> None:
    federation = FederationTable(rounds=5, clients_per_round=4)
    fixed = client_mechanism(table(), federation, 40)
    poisson = client_mechanism(table(sampling="poisson"), federation, 40)
    assert (fixed.account.rate, poisson.account.rate) == (1.0, 0.1)
    assert poisson.account.noise < fixed.account.noise


def test_a_delta_that_gives_a_client_away_is_refused() -> None:
    federation = FederationTable(rounds=5, clients_per_round=4)
    with pytest.raises(UserError, match="one of 40 clients be told whole"):
        client_mechanism(table(delta=0.025), federation, 40)


def test_a_budget_that_does_not_last_a_round_is_refused() -> None:
    federation = FederationTable(rounds=5, clients_per_round=4)
    with pytest.raises(UserError, match=r"one round alone has epsilon .* more than the 0\.1"):
        client_mechanism(table(epsilon=0.1, noise=1.0), federation, 40)
    with pytest.raises(UserError, match="leaves nothing to learn"):
        client_mechanism(table(epsilon=1e-6, delta=1e-9), federation, 40)
