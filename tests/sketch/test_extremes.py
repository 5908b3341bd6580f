"""The largest of many numbers, of any dtype and stride, against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fullfed.sketch.checks import is_finite, largest

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@given(
    count=st.sampled_from([1, 5, 32767, 32768, 32769, 100_000]),
    share=st.floats(0, 1, exclude_max=True),
    value=st.sampled_from([math.nan, math.inf, -math.inf, -7.5, 0.0, -0.0]),
    dtype=st.sampled_from(FLOATS),
    step=st.sampled_from([1, 2]),
)
def test_largest_is_that_of_numpy(
    count: int, share: float, value: float, dtype: torch.dtype, step: int
) -> None:
    values = torch.linspace(-1, 1, count * step)
    values[step * int(share * count)] = value
    values = values.to(dtype)[::step]
    expected = np.abs(values.double().numpy()).max()
    assert largest(values) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert is_finite(values) == math.isfinite(expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_finite(dtype: torch.dtype) -> None:
    assert is_finite(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_is_finite_and_one_number_too(dtype: torch.dtype) -> None:
    assert largest(torch.zeros(0, dtype=dtype)) == 0
    assert largest(torch.tensor(-2.0, dtype=dtype)) == 2
