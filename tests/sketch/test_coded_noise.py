"""docs/theory.md, three extensions: what coded coordinates and scales add to a loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fullfed.sketch import Purpose, Scales, SignBasis, Stream, code_of, decoded

D, K, ROUNDS = 2048, 256, 600


def gaussian(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


CHANGE = gaussian(D, 1) * torch.linspace(0.1, 3, D)
CURVATURE = torch.linspace(5, 0.01, D).double() ** 2  # the diagonal of H


def cost(bits: int | None, scales: Scales | None = None) -> float:
    """The mean of e'He over rounds, e the error of what is rebuilt."""
    total = 0.0
    for number in range(ROUNDS):
        basis = SignBasis(seed=3, round=number, coordinates=K)
        y = basis.project([CHANGE], scales=scales)
        if bits is not None:
            stream = Stream(3, Purpose.CODES, number)
            y = decoded(code_of(bits).encode(y, stream))
        found = torch.zeros(D)
        basis.reconstruct_([found], y, scales=scales)
        total += float(CURVATURE @ (found - CHANGE).double().square())
    return total / ROUNDS


@pytest.mark.parametrize("bits", [1, 2])
def test_coded_coordinates_count_as_so_many_exact_ones(bits: int) -> None:
    """(1/K) tr(H) |u|^2 of the directions, and as much times 1/F - 1 of the code."""
    fidelity, energy = code_of(bits).fidelity, float(CHANGE.double() @ CHANGE.double())
    coded = (1 / fidelity - 1) * float(CURVATURE.sum()) * energy / K
    assert cost(bits) - cost(None) == pytest.approx(coded, rel=0.06)


def test_scales_shape_what_noise_costs() -> None:
    """(1/K) tr(SHS) |u / s|^2, but for what is in a row of its own."""
    exponents = (-2 * CURVATURE.log2()).round().clamp(-60, 60).to(torch.int8)  # H^(-1/4)
    scales = Scales((exponents,), (torch.zeros(1, dtype=torch.int8),))
    factors = 2 ** (exponents.double() / 8)
    scaled = CHANGE.double() / factors
    row = torch.arange(D) // K
    rows = torch.zeros(D // K).double().index_add(0, row, scaled.square())
    due = float((CURVATURE * factors.square()) @ (scaled @ scaled - rows[row])) / K
    assert cost(None, scales) == pytest.approx(due, rel=0.05)
    assert due < 0.8 * float(CURVATURE.sum()) * float(CHANGE.double() @ CHANGE.double()) / K
