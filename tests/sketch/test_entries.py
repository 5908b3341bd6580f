"""From bits to elements and numbers: the specification's, and the distributions'."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fullfed.sketch import Stream, perturb_
from fullfed.sketch.entries import (
    fields,
    inverse_cdf,
    normals,
    radius,
    rotations,
    second_moment,
    truncated_normals,
)
from sketch.oracle import field, normal, normal_exact, truncated_exact

SIZES = [1, 2, 3, 7, 64, 1000, 4099, 10**6, 2**26, 10**9, 2**40]
MOMENTS = {0: 1, 2: 1, 4: 3, 6: 15, 8: 105}  # of the normal distribution; odd ones are 0
N = 1 << 20


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 16, 32]),
    st.integers(1, 9),
    st.one_of(st.integers(0, 300), st.integers(2**40, 2**41)),
    st.integers(1, 20),
    st.integers(0, 2**64 - 1),
)
def test_fields_are_the_specified_bits(bits, width, first, rows, seed):
    stream = Stream(seed, 1, 5, 6)
    numbers = fields(stream, bits, width, first, rows)
    assert numbers.shape == (rows, width)
    for row in (0, rows // 2, rows - 1):
        for column in (0, width - 1):
            assert numbers[row, column] == field(stream, bits, width, first + row, column)


@pytest.mark.parametrize("width", [1, 2, 100, 2**20])
def test_rotations_are_in_range_and_evenly_spread(width):
    turns = rotations(Stream(3, 2), width, 0, 4000)
    assert turns.min() >= 0
    assert turns.max() < width
    # The mean of 4000 uniform numbers has standard error width / sqrt(12 * 4000).
    assert abs(turns.mean() - (width - 1) / 2) <= 5 * width / (12 * 4000) ** 0.5


@pytest.fixture(scope="module")
def z() -> torch.Tensor:
    """A direction in rows of 128; rows 2 n and 2 n + 1 are pairs."""
    weights = torch.zeros(N)
    perturb_([weights], Stream(1, 4), 1.0, "gaussian")
    return weights.double().view(-1, 128)


@given(st.integers(0, 2**32 - 1))
def test_a_word_makes_the_specified_pair(word):
    pair = normals(np.array([word], dtype=np.uint32))[0]
    assert pair[0] == normal(word, second=False)
    assert pair[1] == normal(word, second=True)


@given(st.integers(0, 2**32 - 1))
@example(2**31)
def test_the_largest_error_is_that_of_radius_and_angle(word):
    """5.9e-7 of the radius; at a right angle to each other 1.7e-7 and 7.2e-7; roundings."""
    pair, exact = normals(np.array([word], dtype=np.uint32))[0], normal_exact(word)
    assert math.dist(pair, exact) < 1.4e-6 * math.hypot(*exact)


def test_every_radius_is_right_and_falls():
    h = np.arange(1 << 16, dtype=np.uint32)
    found = radius(h << np.uint32(16)).astype(np.float64)
    exact = np.sqrt(-2 * np.log((2 * h.astype(np.float64) + 1) / 2**17))
    assert np.abs(found / exact - 1).max() < 6e-7
    assert (np.diff(found) < 0).all()
    assert found[-1] > 0


def test_moments_of_all_that_can_be_drawn():
    """Exactly, radii times angles: 2**32 pairs."""
    angles = np.arange(1 << 15, dtype=np.uint32) << np.uint32(1)
    high = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    radii = radius(high).astype(np.float64)
    turned = normals(angles).astype(np.float64) / radii[0]
    for power, error in ((2, 1e-6), (4, 1e-4), (6, 1e-3), (8, 3e-3)):
        for number in turned.T:
            moment = (radii**power).mean() * (number**power).mean()
            assert moment == pytest.approx(MOMENTS[power], rel=error)
    assert (turned[:, 0] > 0).all()  # the cosine's sign is the word's alone
    assert (turned[:, 1] == -turned[::-1, 1]).all()


@pytest.mark.parametrize("which", [slice(0, None, 2), slice(1, None, 2)], ids=["cos", "sin"])
def test_moments_of_a_sample(z, which):
    """Within five standard errors."""
    numbers = z[which].flatten()
    for power in (1, 2, 3, 4):
        expected = MOMENTS.get(power, 0)
        variance = MOMENTS[2 * power] - expected**2
        error = float((numbers**power).mean()) - expected
        assert abs(error) < 5 * math.sqrt(variance / numbers.numel())


def test_kolmogorov_and_smirnov(z):
    """A larger distance than 2.2 / sqrt(n) has probability 1.3e-4."""
    ordered = z.flatten().sort().values
    chance = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    steps = torch.arange(N + 1, dtype=torch.float64) / N
    distance = max(float((steps[1:] - chance).max()), float((chance - steps[:-1]).max()))
    assert distance < 2.2 / math.sqrt(N)


def test_chi_square(z):
    """64 equally likely intervals, 63 degrees of freedom; the bound is 5 deviations."""
    chance = 0.5 * (1 + torch.erf(z.flatten() / math.sqrt(2)))
    counts = torch.bincount((chance * 64).long(), minlength=64).double()
    assert abs(((counts - N / 64) ** 2 / (N / 64)).sum() - 63) < 5 * math.sqrt(126)


def test_the_two_of_a_pair_are_independent(z):
    """Products of powers have the means of independent numbers; bounds five standard errors."""
    cosines, sines = z[0::2].flatten(), z[1::2].flatten()
    for a, b in ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3)):
        expected = MOMENTS.get(a, 0) * MOMENTS.get(b, 0)
        variance = MOMENTS[2 * a] * MOMENTS[2 * b] - expected**2
        error = float((cosines**a * sines**b).mean()) - expected
        assert abs(error) < 5 * math.sqrt(variance / cosines.numel())


def test_pairs_pass_a_chi_square(z):
    """16 x 16 equally likely rectangles, 255 degrees of freedom; the bound is 5 deviations."""
    places = (8 * (1 + torch.erf(z / math.sqrt(2)))).long()
    counts = torch.bincount((16 * places[0::2] + places[1::2]).flatten(), minlength=256).double()
    expected = N / 2 / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 5 * math.sqrt(2 * 255)


def test_the_largest_is_at_4_85():
    words = np.array([2**15, 0], dtype=np.uint32)  # the middle angle, and the first
    assert normals(words)[0, 0] == pytest.approx(4.8546, abs=1e-4)
    assert normals(words)[1, 1] == pytest.approx(-4.8546, abs=1e-4)


@pytest.mark.parametrize("d", SIZES)
def test_second_moment_is_the_papers_closed_form(d):
    """rho = 1 - 2 a psi(a) / (2 Phi(a) - 1) (Ferret, below eq. 6), in 80 digits."""
    with mpmath.workdps(80):
        a = 1 / mpmath.sqrt(d)
        exact = 1 - 2 * a * mpmath.npdf(a) / (2 * mpmath.ncdf(a) - 1)
        assert abs(second_moment(d) / exact - 1) < 1e-15


def test_second_moment_agrees_with_the_papers_figure_6():
    assert 1 / second_moment(10**6) == pytest.approx(3e6, rel=1e-5)
    assert 1 / second_moment(10**9) == pytest.approx(3e9 + 0.4, rel=1e-15)


@pytest.mark.parametrize("d", SIZES)
def test_truncated_normals_are_the_inverse_cdf(d):
    """Largest error 1.5e-7 of the bound; blocks of one element included."""
    halves = np.unique(np.linspace(0, 65535, 401).astype(np.uint32))
    values = truncated_normals(halves, inverse_cdf(d)).astype(np.float64)
    exact = np.array([truncated_exact(int(h), d) for h in halves])
    assert np.abs(values - exact).max() * np.sqrt(d) < 1.5e-7


@pytest.mark.parametrize("d", [1, 2, 50, 10**6])
def test_truncated_normals_are_symmetric_bounded_and_have_their_moment(d):
    values = truncated_normals(np.arange(65536, dtype=np.uint32), inverse_cdf(d))
    assert np.array_equal(values, -values[::-1])
    assert np.all(np.diff(values) > 0)
    assert values[-1] <= 1 / np.sqrt(d)
    assert np.mean(values.astype(np.float64) ** 2) == pytest.approx(second_moment(d), rel=2e-7)


def test_series_grow_only_where_blocks_are_short():
    assert [len(inverse_cdf(d)) for d in (1, 64, 10**4, 2**22, 10**8)] == [19, 4, 2, 2, 1]
