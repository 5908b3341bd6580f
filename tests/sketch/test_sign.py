"""The sign basis: the specification, exact algebra, statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.sketch import SignBasis
from fullfed.sketch.entries import fields
from sketch.oracle import sign_project, sign_reconstruct

BACKENDS = ["reference", "numba"]


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(count).astype(np.float32))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 400), st.data())
def test_both_operations_are_the_specification(backend, elements, data):
    k = data.draw(st.integers(1, elements))
    basis = SignBasis(seed=elements, round=k, coordinates=k, owner=7)
    delta = noise(elements)
    y = basis.project([delta], backend=backend)
    assert y.dtype == torch.float32
    assert np.array_equal(y.numpy(), sign_project(basis, delta.numpy()))
    weights = noise(elements, 1)
    scales = np.full(elements, 0.3, dtype=np.float32)
    expected = sign_reconstruct(basis, weights.numpy(), y.numpy(), scales)
    basis.reconstruct_([weights], y, scale=0.3, backend=backend)
    assert np.array_equal(weights.numpy(), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**64 - 1))
def test_columns_are_orthogonal_and_of_equal_length_when_k_divides_d(k, multiple, seed):
    """V'V = (d / K) I exactly, for every element equally loaded."""
    d, basis = k * multiple, SignBasis(seed=seed, round=0, coordinates=k)
    for column in range(min(k, 3)):
        y, vector = torch.zeros(k), torch.zeros(d)
        y[column] = 1.0
        basis.reconstruct_([vector], y)
        assert torch.equal(basis.project([vector]), y * multiple)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.data())
def test_only_the_order_of_elements_matters_not_the_tensors_they_are_in(sizes, data):
    total = sum(sizes)
    if total == 0:
        return
    basis = SignBasis(seed=5, round=1, coordinates=data.draw(st.integers(1, total)))
    whole = noise(total)
    parts = [part.clone() for part in whole.split(sizes)]
    y = basis.project([whole])
    assert torch.equal(y, basis.project(parts))
    alone, start = [part.clone() for part in parts], 0
    basis.reconstruct_(parts, y, scale=0.5)
    for part in alone:
        basis.reconstruct_([part], y, scale=0.5, part=(start, total))
        start += part.numel()
    basis.reconstruct_([whole], y, scale=0.5)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(torch.cat(alone), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_before_and_after_is_the_same_as_their_difference(dtype):
    before = [noise(5000).to(dtype).view(50, 100), noise(77, 3).to(dtype)]
    after = [tensor + 1e-2 for tensor in before]
    basis = SignBasis(seed=1, round=1, coordinates=300)
    difference = [a.float() - b.float() for a, b in zip(after, before, strict=True)]
    assert torch.equal(basis.project(after, before=before), basis.project(difference))


def test_reconstruction_is_unbiased_with_the_expected_error():
    """Means over 400 rounds; bounds are 5 standard errors.

    Relative squared error: mean d / K - 1 (here 19), from the identity V'V = (d / K) I. The
    estimate's mean over n rounds differs from delta by sqrt((d / K - 1) / n) of its length.
    """
    d, k, rounds = 2000, 100, 400
    delta = noise(d, 4).double()
    delta *= torch.linspace(0, 3, d)  # uneven, so that bias somewhere would show
    errors, total = [], torch.zeros(d, dtype=torch.float64)
    energies = []
    for number in range(rounds):
        basis = SignBasis(seed=9, round=number, coordinates=k)
        estimate = torch.zeros(d)
        y = basis.project([delta.float()])
        basis.reconstruct_([estimate], y)
        errors.append(float(((estimate - delta) ** 2).sum() / (delta**2).sum()))
        energies.append(float((y.double() ** 2).sum() / (delta**2).sum()))
        total += estimate
    for values, expected in ((errors, d / k - 1), (energies, 1.0)):
        assert abs(np.mean(values) - expected) < 5 * np.std(values) / math.sqrt(rounds)
    bias = float((total / rounds - delta).norm() / delta.norm())
    assert bias == pytest.approx(math.sqrt((d / k - 1) / rounds), rel=0.15)


def expected_error(delta: torch.Tensor, k: int) -> float:
    """docs/sketch.md: the sum over rows of elements times what is not in the row, over K."""
    rows = torch.nn.functional.pad(delta.double() ** 2, (0, -delta.numel() % k)).view(-1, k)
    elements = torch.full((len(rows),), k)
    elements[-1] -= -delta.numel() % k
    return float((elements * (rows.sum() - rows.sum(1))).sum() / k)


def test_the_expected_error_is_a_sum_over_rows():
    """d / K - 1 if K divides d, and else depends on where the length is."""
    assert expected_error(torch.ones(4000), 100) == pytest.approx((40 - 1) * 4000)
    assert expected_error(noise(4000), 100) == pytest.approx(39 * float((noise(4000) ** 2).sum()))
    delta, k, rounds = noise(4096), 4000, 400
    assert expected_error(torch.ones(4096), k) / 4096 == pytest.approx(0.046875)
    expected = expected_error(delta, k)
    errors = []
    for number in range(rounds):
        basis, estimate = SignBasis(seed=9, round=number, coordinates=k), torch.zeros(4096)
        basis.reconstruct_([estimate], basis.project([delta]))
        errors.append(float(((estimate - delta) ** 2).sum()))
    assert abs(np.mean(errors) - expected) < 5 * np.std(errors) / math.sqrt(rounds)


def test_errors_have_the_covariance_of_the_lemma():
    """docs/theory.md, entry by entry, within 6 standard errors; the last row is shorter."""
    d, k, rounds = 11, 4, 4000
    delta = noise(d, 5)
    errors = torch.zeros(rounds, d)
    for number in range(rounds):
        basis = SignBasis(seed=9, round=number, coordinates=k)
        basis.reconstruct_([errors[number]], basis.project([delta]))
    errors, delta = (errors - delta).double(), delta.double()
    products = errors[:, :, None] * errors[:, None, :]
    row = torch.arange(d) // k
    same = row[:, None] == row[None, :]
    expected = torch.where(same, 0, torch.outer(delta, delta))
    expected += torch.diag((delta**2).sum() - same.double() @ delta**2)
    deviation = products.std(0) / math.sqrt(rounds)
    assert bool(((products.mean(0) - expected / k).abs() <= 6 * deviation + 1e-6).all())


def test_signs_are_fair_and_unrelated_between_rounds_owners_and_seeds():
    """Sums of n signs are normal with deviation sqrt(n); bounds are 5 deviations."""
    n = 1 << 16

    def signs(seed, number, owner):
        stream = SignBasis(seed=seed, round=number, owner=owner, coordinates=n // 128).rows(n).signs
        return 1.0 - 2.0 * fields(stream, 1, n // 128, 0, 128).reshape(-1).astype(np.float64)

    base = signs(1, 2, 3)
    assert abs(base.sum()) < 5 * math.sqrt(n)
    for lag in (1, 2, 128, n // 128):
        assert abs((base[lag:] * base[:-lag]).sum()) < 5 * math.sqrt(n)
    for other in (signs(2, 2, 3), signs(1, 3, 3), signs(1, 2, 4)):
        assert abs((base * other).sum()) < 5 * math.sqrt(n)


def test_bytes_of_signs_pass_a_chi_square():
    """255 degrees of freedom: mean 255, deviation sqrt(510); the bound is 5 deviations."""
    octets = fields(
        SignBasis(seed=1, round=1, coordinates=1024).rows(1 << 19).signs, 1, 1024, 0, 512
    )
    counts = np.bincount(np.packbits(octets.astype(np.uint8)), minlength=256)
    expected = counts.sum() / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 5 * math.sqrt(510)


def test_one_column_of_a_matrix_is_spread_over_the_coordinates():
    """Rows as long as a basis row: without rotation a column would be one coordinate.

    A chi-square of the loads of K = 256 coordinates, bound 5 deviations.
    """
    k, rows = 256, 20000
    y = torch.zeros(k, dtype=torch.float64)
    matrix = torch.zeros(rows, k)
    matrix[:, 17] = 1.0
    turns = torch.zeros(rows, k)
    basis = SignBasis(seed=1, round=1, coordinates=k)
    for column in range(k):
        unit = torch.zeros(k)
        unit[column] = 1.0
        turns.zero_()
        basis.reconstruct_([turns], unit)
        y[column] = (turns[:, 17] != 0).sum()
    expected = rows / k
    assert float(y.sum()) == rows
    statistic = float(((y - expected) ** 2 / expected).sum())
    assert abs(statistic - (k - 1)) < 5 * math.sqrt(2 * (k - 1))
