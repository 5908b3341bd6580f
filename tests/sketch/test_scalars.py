"""Conversions of float16, by the processor and by integers, against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from fullfed.sketch import scalars_cpu

HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
BY_PROCESSOR = pytest.mark.skipif(
    not scalars_cpu._HALVES, reason="this processor has no instructions for float16"
)
WAYS = [pytest.param("", marks=BY_PROCESSOR), "_by_integers"]


@pytest.mark.parametrize("way", WAYS)
def test_every_float16_is_widened(way):
    function = njit(getattr(scalars_cpu, f"_from_float16{way}"))

    @njit
    def widen(stored, wide):
        for i in range(stored.size):
            wide[i] = function(stored[i])

    wide = np.empty(HALVES.size, np.float32)
    widen(HALVES, wide)
    expected = HALVES.view(np.float16).astype(np.float32)
    nan = np.isnan(expected)
    assert np.array_equal(wide[~nan].view(np.uint32), expected[~nan].view(np.uint32))
    assert np.isnan(wide[nan]).all()


@pytest.mark.parametrize("way", WAYS)
def test_float32s_are_narrowed_to_the_nearest(way):
    """All float16, what lies beside them and halfway between, and numbers of every size."""
    function = njit(getattr(scalars_cpu, f"_to_float16{way}"))

    @njit
    def narrow(wide, stored):
        for i in range(wide.size):
            stored[i] = function(wide[i], stored[i])

    exact = HALVES.view(np.float16).astype(np.float32).view(np.uint32).astype(np.int64)
    offsets = np.array([-0x1000, -1, 0, 1, 0xFFF, 0x1000, 0x1001])
    near = (exact[:, None] + offsets).ravel() % 2**32
    anywhere = np.random.default_rng(0).integers(0, 2**32, 1 << 18)
    wide = np.concatenate([near, anywhere]).astype(np.uint32).view(np.float32)
    stored = np.empty(wide.size, np.int16)
    narrow(wide, stored)
    with np.errstate(over="ignore"):
        expected = wide.astype(np.float16)
    nan = np.isnan(expected)
    assert np.array_equal(stored[~nan], expected[~nan].view(np.int16))
    quiet = np.where(np.signbit(wide[nan]), 0xFE00, 0x7E00).astype(np.uint16)
    assert np.array_equal(stored[nan].view(np.uint16), quiet)
