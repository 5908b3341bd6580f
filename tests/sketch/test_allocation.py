"""Splitting a budget of coordinates."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullfed.errors import UserError
from fullfed.sketch import allocate


@st.composite
def problems(draw):
    sizes = draw(st.lists(st.integers(1, 50), min_size=1, max_size=8))
    weight = st.floats(0, 1e6, allow_subnormal=False)
    weights = draw(st.lists(weight, min_size=len(sizes), max_size=len(sizes)))
    return draw(st.integers(len(sizes), sum(sizes))), weights, sizes


@given(problems())
def test_counts_add_up_within_their_bounds(problem):
    total, weights, sizes = problem
    counts = allocate(total, weights, sizes)
    assert sum(counts) == total
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))


@given(problems())
def test_a_heavier_block_of_equal_size_gets_no_less(problem):
    total, weights, sizes = problem
    counts = allocate(total, weights, sizes)
    for a, b in itertools.permutations(range(len(sizes)), 2):
        if sizes[a] == sizes[b] and weights[a] > weights[b]:
            assert counts[a] >= counts[b]


def test_shares_are_proportional_where_nothing_binds():
    assert allocate(100, [1.0, 2.0, 7.0], [1000] * 3) == (10, 20, 70)
    assert allocate(10, [1.0, 1.0, 1.0], [100] * 3) == (4, 3, 3)


def test_what_a_full_block_cannot_take_goes_to_the_others():
    assert allocate(100, [1.0, 1.0, 98.0], [1000, 1000, 40]) == (30, 30, 40)


def test_zero_weights_mean_even_shares():
    assert allocate(9, [0.0, 0.0, 0.0], [9, 9, 9]) == (3, 3, 3)
    assert allocate(5, [0.0, 1.0], [9, 9]) == (1, 4)


def test_the_split_minimises_the_squared_error_among_all_splits():
    """Weights sqrt(d) * norm minimise sum d_l norm_l**2 / K_l, up to rounding."""
    sizes, norms = [400, 100, 2500], [1.0, 3.0, 0.2]
    weights = [d**0.5 * norm for d, norm in zip(sizes, norms, strict=True)]

    def error(counts):
        return sum(d * n * n / k for d, n, k in zip(sizes, norms, counts, strict=True))

    splits = [(a, b, 60 - a - b) for a in range(1, 59) for b in range(1, 60 - a)]
    assert error(allocate(60, weights, sizes)) <= min(map(error, splits)) * 1.01


@pytest.mark.parametrize(
    ("total", "weights", "sizes"),
    [
        (1, [1.0, 1.0], [5, 5]),
        (11, [1.0, 1.0], [5, 5]),
        (4, [1.0], [5, 5]),
        (4, [1.0, float("nan")], [5, 5]),
        (4, [1.0, -1.0], [5, 5]),
        (0, [], []),
    ],
)
def test_impossible_requests_are_refused(total, weights, sizes):
    if not sizes:
        assert allocate(total, weights, sizes) == ()
        return
    with pytest.raises(UserError):
        allocate(total, weights, sizes)
