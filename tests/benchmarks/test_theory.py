"""Quadratics stay below the theorem's bound, and what the lemma says is dear is."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

THEORY = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "theory.py"))
FLAT, STEEP = THEORY["SPECTRA"]["flat"], THEORY["SPECTRA"]["steep"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("spectrum", [FLAT, STEEP], ids=["flat", "steep"])
def test_gradients_are_below_the_bound(spectrum: object, shared: bool) -> None:
    case = THEORY["Federation"](spectrum, 16, 4, shared)
    measured = list(case.squared_gradients(case.longest, 60))
    assert np.mean(measured) < case.bound(case.longest, 60)


def test_the_effective_rank_decides_and_not_the_number_of_parameters() -> None:
    """A step that a steep loss takes with one coordinate, a flat one does not with sixteen."""
    steep = THEORY["Federation"](STEEP, 1, 1, zeta=0.0, sigma=0.0)
    flat = THEORY["Federation"](FLAT, 16, 1, zeta=0.0, sigma=0.0)
    assert THEORY["arrives"](steep, 0.4)
    assert not THEORY["arrives"](flat, 0.4)
