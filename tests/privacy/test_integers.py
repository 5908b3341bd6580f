"""Integers add up exactly, are packed without loss, and are the numbers in the mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fullfed.privacy.integers import (
    Grid,
    add,
    add_scalars,
    modular,
    most_of,
    pack,
    pack_scalars,
    packed_bytes,
    signed,
    unpack,
    unpack_scalars,
)
from fullfed.privacy.keystream import KeyStream, derived

bit_widths = st.integers(2, 32)
finite = st.floats(-1e6, 1e6)


@given(bit_widths, st.data())
def test_packing_loses_nothing_and_leaves_no_gaps(bits: int, data: st.DataObject) -> None:
    values = data.draw(arrays(np.uint32, st.integers(0, 70), elements=st.integers(0, 2**bits - 1)))
    packed = pack(values, bits)
    assert len(packed) == packed_bytes(len(values), bits) == -(-len(values) * bits // 8)
    assert np.array_equal(unpack(packed, len(values), bits), values)
    text = "".join(format(int(v), f"0{bits}b")[::-1] for v in values)
    written = "".join(format(int(byte), "08b")[::-1] for byte in packed)
    assert written[: len(text)] == text
    assert set(written[len(text) :]) <= {"0"}


@given(bit_widths, st.integers(1, 12), st.data())
def test_sums_of_integers_within_their_bound_are_exact(
    bits: int, clients: int, data: st.DataObject
) -> None:
    most = most_of(bits, clients)
    each = [data.draw(st.integers(-most, most)) for _ in range(clients)]
    total = modular(np.zeros(1, np.int64), bits)
    for one in each:
        add(total, modular(np.array([one]), bits), bits)
    assert signed(total, bits).tolist() == [sum(each)]
    add(total, modular(np.array([each[0]]), bits), bits, -1)
    assert signed(total, bits).tolist() == [sum(each[1:])]


def test_rounding_is_right_in_the_mean_and_of_the_variance_that_is_said() -> None:
    grid, stream = Grid(0.25, 16, 1000), KeyStream(derived(b"a test", "rounding"))
    for number in (0.1, -3.33, 7.0):
        rounded = grid.rounded(np.full(200_000, number), stream) * grid.unit
        share = number / grid.unit % 1
        deviation = grid.unit * np.sqrt(share * (1 - share) / 200_000)
        assert abs(rounded.mean() - number) <= 5 * deviation
        assert set(rounded) <= {np.floor(number * 4) / 4, np.ceil(number * 4) / 4}
    spread = np.linspace(-2, 2, 400_001)
    errors = grid.rounded(spread, stream) * grid.unit - spread
    assert errors.var() == pytest.approx(grid.rounding_variance, rel=0.01)


def test_numbers_beyond_the_grid_are_taken_for_its_largest() -> None:
    grid = Grid(1.0, 8, 12)
    rounded = grid.rounded(np.array([1e9, -1e9, 12.0]), KeyStream(bytes(32)))
    assert rounded.tolist() == [12, -12, 12]


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=5))
def test_scalars_add_up(pairs: list[tuple[float, float]]) -> None:
    one, other = (pack_scalars(numbers) for numbers in zip(*pairs, strict=True))
    both = add_scalars(one, other)
    assert unpack_scalars(both) == pytest.approx([a + b for a, b in pairs], abs=2**-60, rel=1e-15)
    assert unpack_scalars(add_scalars(both, other, -1)) == unpack_scalars(one)
