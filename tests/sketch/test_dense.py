"""The dense basis: the specification, statistics, and no vector twice."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.sketch import NormalBasis, Purpose, Stream, second_moment
from sketch.oracle import f32, field, truncated_exact


def vectors(basis, block_sizes) -> list[np.ndarray]:
    """Each block's V as (K, d), read off the reconstruction of unit coordinates."""
    blocks = []
    count = sum(basis.coordinates)
    for k in range(count):
        y = torch.zeros(count)
        y[k] = 1.0
        weights = [torch.zeros(size) for size in block_sizes]
        basis.reconstruct_(weights, y)
        blocks.append([w.numpy() for w in weights])
    ends = np.cumsum((0, *basis.coordinates))
    return [
        np.stack([blocks[k][number] for k in range(low, high)])
        for number, (low, high) in enumerate(itertools.pairwise(ends))
    ]


def one_tensor_blocks(sizes, counts, **names):
    blocks = tuple(range(n, n + 1) for n in range(len(sizes)))
    return NormalBasis(**{"seed": 1, "round": 1, **names}, blocks=blocks, coordinates=tuple(counts))


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("d", [1, 3, 130, 1025])
def test_entries_come_from_the_specified_bits(backend, d):
    """16 bits of the block's stream, direction k starting at row 8 k ceil(d / 1024)."""
    k = min(d, 2)
    basis = one_tensor_blocks([5, d], [1, k])
    stream = Stream(1, Purpose.TRUNCATED_NORMAL, 1, basis.owner, block=1)
    for direction in range(k):
        y = torch.zeros(1 + k)
        y[1 + direction] = 1.0
        weights = [torch.zeros(5), torch.zeros(d)]
        basis.reconstruct_(weights, y, backend=backend)
        for e in {0, d // 2, d - 1}:
            row = 8 * direction * -(-d // 1024) + e // 128
            exact = truncated_exact(field(stream, 16, 128, row, e % 128), d)
            assert weights[1][e].item() == pytest.approx(exact, abs=2e-7 / math.sqrt(d))


@pytest.mark.parametrize("backend", ["reference", "numba"])
@settings(max_examples=6, deadline=None)
@given(st.integers(1, 9000))
def test_projection_sums_in_the_specified_order(backend, d):
    """Lanes of 128 over 32 rows, a tree over lanes, pieces in order."""
    basis = one_tensor_blocks([d], [1])
    delta = np.random.default_rng(d).standard_normal(d).astype(f32)
    vector = vectors(basis, [d])[0][0]
    products = np.zeros(-(-d // 4096) * 4096, dtype=f32)
    products[:d] = vector * delta
    total = f32(0)
    for piece in products.reshape(-1, 32, 128):
        lanes = np.zeros(128, dtype=f32)
        for row in piece:
            lanes = lanes + row
        while lanes.size > 1:
            lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
        total = total + lanes[0]
    rho = second_moment(d)
    y = basis.project([torch.from_numpy(delta)], backend=backend)
    assert y.item() == total * f32(1 / rho)


def test_projection_is_the_matrix_product():
    sizes, counts = [300, 1, 5000], [7, 1, 20]
    basis = one_tensor_blocks(sizes, counts)
    rng = np.random.default_rng(0)
    deltas = [rng.standard_normal(size).astype(f32) for size in sizes]
    y = basis.project([torch.from_numpy(delta) for delta in deltas]).double().numpy()
    expected = [
        v.astype(np.float64) @ delta / (len(v) * second_moment(len(delta)))
        for v, delta in zip(vectors(basis, sizes), deltas, strict=True)
    ]
    assert np.allclose(y, np.concatenate(expected), rtol=1e-5, atol=1e-3)


def test_a_block_of_several_tensors_is_one_vector():
    sizes = [100, 3000, 40, 1]
    whole = NormalBasis(seed=1, round=1, blocks=(range(1),), coordinates=(6,))
    split = NormalBasis(seed=1, round=1, blocks=(range(4),), coordinates=(6,))
    delta = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0))
    parts = [part.clone() for part in delta.split(sizes)]
    y = whole.project([delta])
    assert torch.equal(y, split.project(parts))
    whole.reconstruct_([delta], y, scale=0.1)
    split.reconstruct_(parts, y, scale=0.1)
    assert torch.equal(torch.cat(parts), delta)


def test_reconstruction_is_unbiased_with_the_expected_error():
    """Relative squared error (d - 0.2) / K; means over 300 rounds, bounds 5 standard errors."""
    d, k, rounds = 500, 25, 300
    delta = torch.randn(d, generator=torch.Generator().manual_seed(1)) * torch.linspace(0, 3, d)
    errors, total = [], torch.zeros(d, dtype=torch.float64)
    for number in range(rounds):
        basis = one_tensor_blocks([d], [k], round=number)
        estimate = torch.zeros(d)
        basis.reconstruct_([estimate], basis.project([delta]))
        errors.append(float(((estimate - delta) ** 2).sum() / (delta**2).sum()))
        total += estimate
    assert abs(np.mean(errors) - (d - 0.2) / k) < 5 * np.std(errors) / math.sqrt(rounds)
    bias = float((total / rounds - delta).norm() / delta.norm())
    assert bias == pytest.approx(math.sqrt((d - 0.2) / k / rounds), rel=0.15)


def test_no_two_directions_are_related():
    """Between directions, equal-sized blocks, rounds, owners and seeds; bounds 5 deviations."""
    d = 4000
    names = [{}, {"round": 2}, {"owner": 5}, {"seed": 2}]
    found = []
    for name in names:
        for block in vectors(one_tensor_blocks([d, d], [2, 2], **name), [d, d]):
            found.extend(block.astype(np.float64))
    unit = np.stack([v / np.linalg.norm(v) for v in found])
    cosines = unit @ unit.T - np.eye(len(unit))
    assert np.abs(cosines).max() < 5 / math.sqrt(d)


def test_entries_pass_a_chi_square():
    """64 equally likely intervals, 63 degrees of freedom; the bound is 5 deviations."""
    d = 1 << 16
    vector = vectors(one_tensor_blocks([d], [1]), [d])[0][0]
    counts = np.bincount(((vector * math.sqrt(d) + 1) * 32).astype(int), minlength=64)
    assert abs(((counts - d / 64) ** 2 / (d / 64)).sum() - 63) < 5 * math.sqrt(126)
