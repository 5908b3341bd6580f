"""Few-bit matrices: by brute force in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.training.quantised import Quantised


@settings(deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.sampled_from([1, 2, 7, 64, 66, 128]),
    bits=st.sampled_from([8, 4]),
    seed=st.integers(0, 99),
    size=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
)
def test_every_element_is_off_by_at_most_half_a_step(
    rows: int, columns: int, bits: Any, seed: int, size: float
) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    ours = Quantised.of(matrix, bits).dequantised()
    bits = 8 if columns % 2 else bits
    group = 64 if bits == 4 and columns % 64 == 0 else columns
    for r in range(rows):
        for start in range(0, columns, group):
            exact = matrix[r, start : start + group].double()
            step = exact.abs().max() / (127 if bits == 8 else 7)
            off = (ours[r, start : start + group].double() - exact).abs()
            assert bool((off <= step * 0.5001 + 1e-12).all())


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_rows_of_the_matrix(bits: Any) -> None:
    packed = Quantised.of(torch.randn(7, 128), bits)
    index = torch.tensor([[0, 3], [6, 3]])
    assert torch.equal(packed.rows(index), packed.dequantised()[index])


@pytest.mark.parametrize(("bits", "expected"), [(8, 300 * 128 + 2 * 300), (4, 300 * 64 + 2 * 600)])
def test_bytes(bits: Any, expected: int) -> None:
    packed = Quantised.of(torch.randn(300, 128).bfloat16(), bits)
    assert packed.codes.nbytes + packed.scale.nbytes == expected
