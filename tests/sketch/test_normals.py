"""Normals: the specification's numbers, and the normal distribution's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fullfed.sketch import Stream, perturb_
from fullfed.sketch.entries import normals, radius
from sketch.oracle import normal, normal_exact

MOMENTS = {0: 1, 2: 1, 4: 3, 6: 15, 8: 105}  # of the normal distribution; odd ones are 0
N = 1 << 20


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
