"""bfloat16 weights without a master copy: what rounding does to small changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fullfed.sketch import SHARED, Purpose, Rounding, SignBasis, Stream, accumulate_, perturb_
from sketch.oracle import f32, field


def test_rounding_follows_the_specified_bits():
    """The upper 16 bits of (bits of the float32 + 16 bits of the stream)."""
    basis, d = SignBasis(seed=3, round=9, coordinates=100), 3000
    start = torch.from_numpy(np.random.default_rng(0).standard_normal(d).astype(f32)).bfloat16()
    y = torch.full((100,), 1e-3)
    wide, weights = [start.float()], [start.clone()]
    basis.reconstruct_(wide, y)
    basis.reconstruct_(weights, y, rounding="stochastic")
    stream = Stream(3, Purpose.ROUNDING, 9, SHARED)
    for g in (0, 1, 127, 128, 1023, 1024, 1025, 2999):
        bits = int(wide[0][g].view(torch.int32)) & 0xFFFFFFFF
        kept = (bits + field(stream, 16, 128, g // 128, g % 128)) >> 16 & 0xFFFF
        assert int(weights[0][g].view(torch.int16)) & 0xFFFF == kept


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_directions_round_by_the_first_ones_names(distribution):
    """Its seed, round and owner, at the element's number; neither its purpose nor its block."""
    streams, start = [Stream(5, Purpose.DIRECTION, 2, 8, block=3), Stream(6, 4)], 1000
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(3000).astype(f32))
    rounding = Stream(5, Purpose.ROUNDING, 2, 8)
    for change in (
        lambda w, how: perturb_(w, streams[0], 1e-3, distribution, start=start, rounding=how),
        lambda w, how: accumulate_(
            w, streams, [1e-3, 2e-3], distribution, start=start, rounding=how
        ),
    ):
        wide, weights = [values.bfloat16().float()], [values.bfloat16()]
        change(wide, "nearest")
        change(weights, "stochastic")
        for i in (0, 23, 24, 25, 2999):
            bits = int(wide[0][i].view(torch.int32)) & 0xFFFFFFFF
            g = start + i
            kept = (bits + field(rounding, 16, 128, g // 128, g % 128)) >> 16 & 0xFFFF
            assert int(weights[0][i].view(torch.int16)) & 0xFFFF == kept


def test_what_bfloat16_holds_exactly_does_not_move():
    weights = [torch.arange(-128, 128).bfloat16()]
    expected = weights[0].clone()
    basis = SignBasis(seed=1, round=1, coordinates=4)
    basis.reconstruct_(weights, torch.zeros(4), rounding="stochastic")
    assert torch.equal(weights[0], expected)


def drift(rounding: Rounding, dtype: torch.dtype, rounds: int = 400) -> np.ndarray:
    """How far 4096 weights of 0.02 got in steps of 1e-5, one each round.

    With as many coordinates as elements a sign basis reconstructs exactly.
    """
    d = 4096
    weights, step = [torch.full((d,), 0.02).to(dtype)], [torch.full((d,), 1e-5)]
    start = weights[0].double()
    for number in range(rounds):
        basis = SignBasis(seed=1, round=number, coordinates=d)
        basis.reconstruct_(weights, basis.project(step), rounding=rounding)
    return (weights[0].double() - start).numpy()


def test_nearest_loses_small_changes_and_stochastic_keeps_them_on_average():
    """The truth is 400 x 1e-5; a step is a twelfth of the distance between bfloat16s near 0.02."""
    assert np.abs(drift("nearest", torch.float32) - 4e-3).max() < 1e-6
    assert np.abs(drift("nearest", torch.bfloat16)).max() == 0.0
    moved = drift("stochastic", torch.bfloat16)
    assert abs(moved.mean() - 4e-3) < 5 * moved.std() / math.sqrt(moved.size)
    assert moved.std() < 1e-3
