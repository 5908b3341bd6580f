"""The search for a learning rate, on losses made up for the purpose."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullfed.comparisons.search import Trial, best, next_rate


def search(objective: Callable[[float], float], budget: int, start: float = 1.0) -> list[Trial]:
    """Every trial, given the loss at each power of ten; infinity is divergence."""
    trials: list[Trial] = []
    for _ in range(budget):
        rate = next_rate(start, trials)
        loss = objective(math.log10(rate))
        failed = math.isinf(loss)
        trials.append(Trial(rate, None if failed else loss, "diverged" if failed else None))
    return trials


def places(trials: list[Trial], start: float = 1.0) -> list[float]:
    """Where the trials were, in sixteenths of a decade from the start."""
    return [round(16 * math.log10(trial.learning_rate / start)) / 16 for trial in trials]


def test_the_start_and_its_neighbours_come_first() -> None:
    assert places(search(abs, 3)) == [0, 0.5, -0.5]
    assert [t.learning_rate for t in search(abs, 3, start=0.3)] == [0.3, 0.9487, 0.09487]


def test_it_walks_in_the_better_direction() -> None:
    assert places(search(lambda x: -x, 6)) == [0, 0.5, -0.5, 1, 1.5, 2]
    assert places(search(lambda x: x, 6)) == [0, 0.5, -0.5, -1, -1.5, -2]


def test_once_the_best_is_bracketed_the_gaps_are_halved_on_the_better_side_first() -> None:
    found = search(lambda x: (x - 0.2) ** 2, 7)
    assert places(found) == [0, 0.5, -0.5, 0.25, 0.125, 0.375, 0.1875]
    assert best(found).learning_rate == pytest.approx(10**0.1875, rel=1e-3)


def test_no_trial_is_spent_above_a_rate_that_diverged() -> None:
    found = search(lambda x: math.inf if x > 0.4 else -x, 7)
    assert places(found) == [0, 0.5, -0.5, -0.25, 0.25, 0.125, 0.375]
    assert [trial.reason for trial in found] == [None, "diverged", *[None] * 5]
    assert best(found).learning_rate == pytest.approx(10**0.375, rel=1e-3)


def test_where_the_start_diverges_it_walks_down() -> None:
    found = search(lambda x: math.inf if x > -1.2 else (x + 2) ** 2, 6)
    assert places(found) == [0, -0.5, -1, -1.5, -2, -2.5]
    assert best(found).learning_rate == pytest.approx(0.01)


def test_where_everything_diverges_the_lowest_rate_is_taken() -> None:
    found = search(lambda x: math.inf, 4)
    assert places(found) == [0, -0.5, -1, -1.5]
    assert best(found) == found[-1]


@given(st.floats(-1.5, 1.5))
def test_a_smooth_valley_is_found(bottom: float) -> None:
    found = search(lambda x: (x - bottom) ** 2, 8)
    assert abs(math.log10(best(found).learning_rate) - bottom) < 0.26


@given(st.lists(st.one_of(st.floats(0, 10), st.just(math.inf)), min_size=9, max_size=9))
def test_every_budget_is_spent_to_the_last_trial_and_never_twice_at_one_rate(
    losses: list[float],
) -> None:
    """Whatever the losses: they are as good as random here."""
    left = iter(losses)
    found = search(lambda x: next(left), len(losses))
    rates = [trial.learning_rate for trial in found]
    assert len(set(rates)) == len(losses)
    least = best(found).loss
    assert (math.inf if least is None else least) == min(losses)


@given(st.floats(-3, 3), st.floats(-1.5, 1.5))
def test_what_diverged_is_not_tried_at_a_higher_rate(edge: float, bottom: float) -> None:
    found = search(lambda x: math.inf if x > edge else (x - bottom) ** 2, 9)
    for number, trial in enumerate(found):
        if trial.loss is None:
            assert all(later.learning_rate < trial.learning_rate for later in found[number + 1 :])
