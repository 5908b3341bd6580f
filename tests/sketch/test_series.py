"""The distributions, against high precision and against numbers others computed."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from fullfed.sketch.entries import truncated_normals
from fullfed.sketch.series import inverse_cdf, second_moment
from sketch.oracle import truncated_exact

SIZES = [1, 2, 3, 7, 64, 1000, 4099, 10**6, 2**26, 10**9, 2**40]


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
