"""Which bits belong to which element."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.sketch import Stream
from fullfed.sketch.layout import fields, rotations
from sketch.oracle import field


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
