"""Scales: the specification in plain NumPy, exact tables, statistics, bad input."""

from __future__ import annotations

import doctest
import inspect
import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fullfed
from fullfed.errors import UserError
from fullfed.sketch import Scales, SignBasis, Stream, perturb_
from fullfed.sketch import scales as scales_module
from fullfed.sketch.scales import powers
from sketch.models import copies, same_bits, scales_of, tensors
from sketch.oracle import f32, sign_project

BACKENDS = ["reference", "numba"]


def nearest(k: int) -> np.float32:
    """The float32 nearest to 2**(k / 8), by way of 24 bits of the exact number."""
    with mpmath.workprec(200):
        whole, part = divmod(k, 8)
        return f32(
            math.ldexp(int(mpmath.nint(mpmath.mpf(2) ** (mpmath.mpf(part) / 8 + 23))), whole - 23)
        )


TABLE = {k: nearest(k) for k in range(-128, 128)}


def factors(scales: Scales, sign: int = 1) -> np.ndarray:
    """Those of all elements, or with -1 the inverse ones, one by one."""
    return np.array(
        [
            TABLE[sign * int(row)] * TABLE[sign * int(column)]
            for rows, columns in zip(scales.rows, scales.columns, strict=True)
            for row, column in itertools.product(rows, columns)
        ],
        dtype=f32,
    )


def flat(model: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([tensor.reshape(-1).float() for tensor in model]).numpy()


def stored(wide: np.ndarray, model: list[torch.Tensor]) -> list[torch.Tensor]:
    """Float32 numbers in the shapes and types of the model."""
    pieces = torch.from_numpy(wide).split([tensor.numel() for tensor in model])
    return [p.view(t.shape).to(t.dtype) for p, t in zip(pieces, model, strict=True)]


@pytest.fixture(params=[True, False])
def in_place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether kernels that can multiply do so; none can in tensors that are not contiguous."""
    monkeypatch.setattr(scales_module, "SHORT", 1)
    monkeypatch.setattr(scales_module, "LONG", 1 << 17 if request.param else 0)


def test_the_table_is_the_nearest_float32_of_each_power() -> None:
    exponents = torch.arange(-127, 128).to(torch.int8)
    cpu = torch.device("cpu")
    assert powers(exponents, cpu, inverse=False).tolist() == [TABLE[k] for k in range(-127, 128)]
    assert powers(exponents, cpu, inverse=True).tolist() == [TABLE[-k] for k in range(-127, 128)]


def test_inverse_factors_are_within_a_few_units_of_the_reciprocal() -> None:
    """Four roots and two products are rounded, each by half a unit, 2**-24 relatively."""
    exponents = torch.arange(-127, 128).to(torch.int8)
    scales = Scales((exponents,), (exponents,))
    product = factors(scales).astype(np.float64) * factors(scales, -1).astype(np.float64)
    assert np.abs(product - 1).max() < 6 * 2.0**-24 + 1e-12


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(tensors(longest=16), st.data(), st.floats(-4, 4, width=32))
def test_sign_basis_is_the_specification(backend, model, data, scale):
    total, scales = sum(tensor.numel() for tensor in model), scales_of(model, 20)
    k = data.draw(st.integers(-(-total // 100), total))
    basis = SignBasis(seed=total, round=k, coordinates=k)
    before = [tensor * 0.3 for tensor in model] if data.draw(st.booleans()) else None
    change = flat(model) if before is None else flat(model) - flat(before)
    y = basis.project(model, before=before, scales=scales, backend=backend)
    assert np.array_equal(y.numpy(), sign_project(basis, change * factors(scales, -1)))
    signed = [torch.zeros(total)]
    basis.reconstruct_(signed, y, scale=scale, backend="reference")
    expected = stored(flat(model) + signed[0].numpy() * factors(scales), model)
    basis.reconstruct_(model, y, scale=scale, scales=scales, backend=backend)
    assert same_bits(model, expected)


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@settings(max_examples=10, deadline=None)
@given(tensors(longest=30), st.floats(-4, 4, width=32), st.integers(0, 2**40))
def test_perturbing_is_the_specification_and_goes_by_tensor(
    backend, distribution, model, scale, start
):
    scales, parts = scales_of(model, 20), copies(model)
    noise = [torch.zeros(sum(tensor.numel() for tensor in model))]
    options = {"start": start, "backend": "reference"}
    perturb_(noise, Stream(7, 4), scale, distribution, **options)
    expected = stored(flat(model) + noise[0].numpy() * factors(scales), model)
    options["backend"] = backend
    perturb_(model, Stream(7, 4), scale, distribution, scales=scales, **options)
    assert same_bits(model, expected)
    for n, part in enumerate(parts):
        own = scales[n : n + 1]
        perturb_([part], Stream(7, 4), scale, distribution, scales=own, **options)
        options["start"] += part.numel()
    assert same_bits(parts, expected)


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (4, 3, 2), (2, 3, 2, 2), (0, 3), (3, 0)])
def test_columns_are_counted_over_all_dimensions_but_the_first(shape):
    model = [torch.zeros(shape), torch.zeros(7)]
    scales = scales_of(model, 20)
    perturb_(model, Stream(7, 4), 1.0, scales=scales)
    assert np.array_equal(np.abs(flat(model)), factors(scales))


def test_no_scales_and_exponents_of_zero_are_the_same():
    rng = torch.Generator().manual_seed(1)
    model = [torch.randn(40, 30, generator=rng), torch.randn(9, generator=rng)]
    scales, basis = scales_of(model, 0), SignBasis(seed=1, round=1, coordinates=100)
    y = basis.project(model)
    assert torch.equal(basis.project(model, scales=scales), y)
    plain, scaled = copies(model), copies(model)
    basis.reconstruct_(plain, y)
    basis.reconstruct_(scaled, y, scales=scales)
    assert same_bits(plain, scaled)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_negative_zero_stays_where_nothing_is_added(backend):
    """-0 + -0 is -0, which a detour through +0 would lose."""
    weights, basis = [torch.full((6, 8), -0.0)], SignBasis(seed=1, round=1, coordinates=16)
    plain, scaled = copies(weights), copies(weights)
    basis.reconstruct_(plain, torch.zeros(16), backend=backend)
    options = {"scales": scales_of(weights, 20), "backend": backend}
    basis.reconstruct_(scaled, torch.zeros(16), **options)
    assert plain[0].signbit().any()
    assert not plain[0].signbit().all()
    assert same_bits(plain, scaled)


def test_reconstruction_is_unbiased_with_the_expected_error():
    """Means over 400 rounds; bounds are 5 standard errors.

    With x = delta / factor, V V'x has in element g of row r the error of variance
    (||x||**2 - ||x in r||**2) / K, which is then multiplied by factor_g**2.
    """
    k, rounds = 100, 400
    model = [torch.randn(40, 45, generator=torch.Generator().manual_seed(4)), torch.ones(200)]
    scales = scales_of(model, 12)
    factor = torch.from_numpy(factors(scales)).double()
    delta = torch.from_numpy(flat(model)).double() * factor**0.5
    given = stored(delta.float().numpy(), model)
    by_row = ((delta / factor) ** 2).view(-1, k).sum(1)
    variance = factor**2 * (by_row.sum() - by_row).repeat_interleave(k) / k
    errors, total = [], torch.zeros_like(delta)
    for number in range(rounds):
        basis, estimate = SignBasis(9, number, k), stored(0 * flat(model), model)
        basis.reconstruct_(estimate, basis.project(given, scales=scales), scales=scales)
        error = torch.from_numpy(flat(estimate)).double() - delta
        errors.append(float((error**2).sum()))
        total += error
    assert abs(np.mean(errors) - float(variance.sum())) < 5 * np.std(errors) / math.sqrt(rounds)
    standard = total / rounds / (variance / rounds).sqrt()
    assert float(standard.abs().max()) < 5
    assert float(standard.square().mean()) == pytest.approx(1, rel=0.2)


def test_the_example_does_what_it_shows():
    text = inspect.getdoc(Scales) or ""
    test = doctest.DocTestParser().get_doctest(text, {"fullfed": fullfed}, "Scales", None, None)
    assert test.examples
    assert not doctest.DocTestRunner().run(test).failed


BYTE = torch.int8


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([torch.zeros(3)], [torch.zeros(2, dtype=BYTE)], "scales of tensor 0 are torch.float32"),
        ([torch.zeros(3, 1, dtype=BYTE)], [torch.zeros(2, dtype=BYTE)], "expected a row of int8"),
        ([torch.zeros(3, dtype=BYTE)], [torch.full((2,), -128, dtype=BYTE)], "least is -127"),
        ([torch.zeros(3, dtype=BYTE)], [], "rows of 1 tensors but columns of 0"),
    ],
)
def test_exponents_that_are_none(rows, columns, message):
    with pytest.raises(UserError, match=message):
        Scales(tuple(rows), tuple(columns))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(3, 2), (5,), (1,)], "scales of 3 tensors for 2 tensors"),
        ([(2, 3), (5,)], r"scales of tensor 0 have 2 rows and 3 columns; its shape \(3, 2\) takes"),
        ([(3, 2), (1, 5)], "scales of tensor 1 have 1 rows and 5 columns"),
    ],
)
def test_scales_of_other_tensors_change_nothing(shapes, message):
    model, basis = [torch.ones(3, 2), torch.ones(5)], SignBasis(seed=1, round=1, coordinates=4)
    scales = scales_of([torch.ones(shape) for shape in shapes], 3)
    for act in (
        lambda: basis.project(model, scales=scales),
        lambda: basis.reconstruct_(model, torch.ones(4), scales=scales),
        lambda: perturb_(model, Stream(7, 4), 1.0, scales=scales),
        lambda: perturb_(model, Stream(7, 4), 1.0, "gaussian", scales=scales),
    ):
        with pytest.raises(UserError, match=message):
            act()
    assert all(bool((tensor == 1).all()) for tensor in model)
