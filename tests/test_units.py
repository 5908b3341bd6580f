"""Bytes and seconds in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullfed.units import BYTES, SECONDS, Units, bytes_text, scaled, seconds_text

SIZES = {name: size for units in (BYTES, SECONDS) for name, size in units}


@given(
    st.sampled_from([BYTES, SECONDS]),
    st.floats(min_value=1e-5, max_value=1e15, allow_subnormal=False),
)
def test_quantities_keep_three_digits(units: Units, value: float) -> None:
    digits, name = scaled(units, value, value)
    assert float(digits.replace(",", "")) * SIZES[name] == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(500), "500 B"),
        (bytes_text(10696), "10.4 KiB"),
        (bytes_text(3 * 2**30), "3.00 GiB"),
        (seconds_text(0.0421), "42.1 ms"),
        (seconds_text(200), "3.33 min"),
        (seconds_text(5400), "1.50 h"),
    ],
)
def test_the_largest_unit_that_fits(text: str, expected: str) -> None:
    assert text == expected


def test_a_spread_is_in_the_unit_of_its_mean() -> None:
    assert scaled(BYTES, 512, 3 * 2**20) == ("0.00", "MiB")
