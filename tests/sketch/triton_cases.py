"""Triton against the reference: on a GPU where there is one, else through the interpreter.

test_triton.py runs this in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.sketch import (
    NormalBasis,
    SignBasis,
    Stream,
    accumulate_,
    cuda,
    cuda_kernels,
    perturb_,
    reference,
)
from fullfed.sketch.backends import DirectionRows, Rows, Segment
from fullfed.sketch.entries import NORMALS, SIGNS, truncated
from sketch.models import DTYPES, copies, same_bits, scales_of, tensors
from sketch.parts import part_of, project, reconstruct, rows_of

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
few = settings(max_examples=60 if GPU else 3, deadline=None)
words = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def narrow_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "PROGRAM", 256)


def check(model: list[torch.Tensor], act: Callable[[list[torch.Tensor], str], torch.Tensor]):
    """The same results from Triton on its device and from the reference on the CPU."""
    here, there = copies(model), [tensor.to(DEVICE) for tensor in copies(model)]
    expected, found = act(here, "reference"), act(there, "triton")
    assert same_bits([*here, expected], [tensor.cpu() for tensor in [*there, found]])


@few
@given(tensors(longest=16), st.data(), words)
def test_sign_basis(model, data, number):
    total = sum(tensor.numel() for tensor in model)
    k = data.draw(st.integers(-(-total // 100), total))
    basis = SignBasis(seed=number, round=number, owner=number, coordinates=k)
    with_before = data.draw(st.booleans())

    def act(tensors_, backend):
        before = [tensor * 0.5 for tensor in tensors_] if with_before else None
        y = basis.project(tensors_, before=before, backend=backend)
        basis.reconstruct_(tensors_, y, scale=0.3, backend=backend)
        return y

    check(model, act)


@few
@given(tensors(longest=16), st.data(), words)
def test_scales(model, data, number):
    total, scales = sum(tensor.numel() for tensor in model), scales_of(model, 60)
    k = data.draw(st.integers(-(-total // 100), total))
    basis = SignBasis(seed=number, round=number, owner=number, coordinates=k)
    with_before = data.draw(st.booleans())

    def act(tensors_, backend):
        before = [tensor * 0.5 for tensor in tensors_] if with_before else None
        y = basis.project(tensors_, before=before, scales=scales, backend=backend)
        basis.reconstruct_(tensors_, y, scale=0.3, scales=scales, backend=backend)
        for distribution in ("rademacher", "gaussian"):
            options = {"start": number, "scales": scales, "backend": backend}
            perturb_(tensors_, Stream(7, 4), 0.3, distribution, **options)
        return y

    check(model, act)


@few
@given(tensors(longest=16), st.data(), words)
def test_some_rows_of_each(model, data, number):
    """Between segments there are elements that another process has."""
    total, rows = sum(tensor.numel() for tensor in model), rows_of(data, model)
    k = data.draw(st.integers(-(-total // 100), total))
    basis = SignBasis(seed=number, round=number, owner=number, coordinates=k)

    def act(tensors_, backend):
        part = part_of(tensors_, rows)
        y = project(basis, part, None, total, backend)
        reconstruct(basis, part, y, total, backend)
        return y

    check(model, act)


def test_a_nan_is_stored_as_specified():
    model = [torch.tensor([float("nan"), 1.0, -float("nan")]).to(dtype) for dtype in DTYPES[1:]]

    def act(tensors_, backend):
        perturb_(tensors_, Stream(7, 4), 0.3, backend=backend)
        perturb_(tensors_, Stream(7, 4), 0.3, "gaussian", backend=backend)
        return torch.zeros(1)

    check(model, act)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_columns_share_counters_where_rows_are_few(rows):
    rng = torch.Generator().manual_seed(rows)
    model = [torch.randn(size, generator=rng) for size in (130, 1, 569)]
    basis = SignBasis(seed=1, round=1, coordinates=-(-700 // rows))

    def act(tensors_, backend):
        y = basis.project(tensors_, backend=backend)
        basis.reconstruct_(tensors_, y, backend=backend)
        return y

    check(model, act)


def test_a_counter_may_have_no_columns():
    """As those of large models, which begin with blocks; 22 would do here."""
    rng = torch.Generator().manual_seed(1)
    model = [torch.randn(size, generator=rng) for size in (130, 1, 569)]
    basis = SignBasis(seed=1, round=1, coordinates=700)

    def act(tensors_, backend):
        with mock.patch.object(Rows, "counters", 50):
            y = basis.project(tensors_, backend=backend)
            basis.reconstruct_(tensors_, y, backend=backend)
        return y

    check(model, act)


@pytest.mark.parametrize(("k", "sizes"), [(4, [300, 1, 0, 130, 64, 2, 55]), (40, [20, 1, 0, 31])])
def test_many_tensors_are_one_launch(monkeypatch, k, sizes):
    """Of several groups of rows, or many in one row; and one launch for each run of a dtype."""
    rng = torch.Generator().manual_seed(k)
    model = [torch.randn(size, generator=rng) for size in sizes]
    basis = SignBasis(seed=1, round=1, coordinates=k)
    launched = []

    def act(tensors_, backend):
        y = basis.project(tensors_, backend=backend)
        basis.reconstruct_(tensors_, y, scale=0.3, backend=backend)
        accumulate_(tensors_, [Stream(7, 4)], [0.3], start=77, backend=backend)
        return y

    for name in (
        "project",
        "reconstruct",
        "add_combination",
    ):
        counting = Launches(getattr(cuda_kernels, name), launched)
        monkeypatch.setattr(cuda_kernels, name, counting)
    check(model, act)
    assert len(launched) == 3
    launched.clear()
    dtypes = [DTYPES[n // 3] for n in range(len(model))]
    check([tensor.to(dtype) for tensor, dtype in zip(model, dtypes, strict=True)], act)
    assert len(launched) == 3 * len(set(dtypes))


class Launches:
    """A kernel that notes each launch."""

    def __init__(self, kernel: Any, noted: list[object]) -> None:
        self.kernel, self.noted = kernel, noted

    def __getitem__(self, grid: object) -> Any:
        self.noted.append(grid)
        return self.kernel[grid]


@few
@given(tensors(longest=40), words, st.integers(1, 3))
def test_dense_basis(model, number, count):
    total = sum(tensor.numel() for tensor in model)
    counts = (min(count, total),)
    basis = NormalBasis(seed=1, round=number, blocks=(range(len(model)),), coordinates=counts)

    def act(tensors_, backend):
        y = basis.project(tensors_, backend=backend)
        basis.reconstruct_(tensors_, y, scale=0.3, backend=backend)
        return y

    check(model, act)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@few
@given(
    tensors(longest=40),
    st.lists(st.floats(-4, 4, width=32), max_size=3),
    st.integers(0, 2**40),
)
def test_directions(distribution, model, scalars, start):
    streams = [Stream(n, 4, n, n) for n in range(len(scalars))]

    def act(tensors_, backend):
        options = {"start": start, "backend": backend}
        perturb_(tensors_, Stream(7, 4), 0.3, distribution, **options)
        accumulate_(tensors_, streams, scalars, distribution, **options)
        return torch.zeros(1)

    check(model, act)


@few
@given(st.integers(1, 3000), st.integers(0, 2**40))
def test_stochastic_rounding(count, offset):
    wide = torch.randn(count, generator=torch.Generator().manual_seed(count))
    wide[count // 2] = float("inf")
    results = [torch.zeros(count, dtype=torch.bfloat16, device=d) for d in (DEVICE, "cpu")]
    for kernels, result in zip((cuda, reference), results, strict=True):
        kernels.round_to(result, wide.to(result.device), Stream(7, 10), offset)
    assert same_bits([results[0].cpu()], [results[1]])


@few
@given(st.integers(1, 3000), st.integers(0, 2**40), st.sampled_from([16, 13]))
def test_dither(count, offset, dropped):
    dtype = torch.bfloat16 if dropped == 16 else torch.float16
    wide = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype).float()
    wide[count // 2] = float("inf")
    wide[count // 3] = 0
    results = [wide.clone().to(d) for d in (DEVICE, "cpu")]
    for kernels, result in zip((cuda, reference), results, strict=True):
        kernels.dither(result, Stream(7, 18), offset, dropped)
    assert same_bits([results[0].cpu()], [results[1]])


@pytest.mark.parametrize("first", [2**32, 2**45 + 128])
def test_counters_beyond_32_bits(first):
    stream, scalars = Stream(1, 2, 3, 4), torch.tensor([0.5])
    for entries in (SIGNS, NORMALS, truncated(7), truncated(10**6)):
        results = []
        for kernels, device in ((cuda, DEVICE), (reference, "cpu")):
            near, far = (torch.zeros(900, device=device) for _ in range(2))
            for segment, row in ((Segment(near, 5), first), (Segment(far, first * 128 + 77), 0)):
                kernels.add_combination(
                    entries, [DirectionRows(stream, row)], scalars.to(device), [segment]
                )
            results.append([near.cpu(), far.cpu()])
        assert same_bits(*results)
    rows, values = Rows(1000, stream, Stream(2, 2)), torch.arange(1000.0)
    results = [[torch.ones(1500, device=DEVICE)], [torch.ones(1500)]]
    for kernels, result in zip((cuda, reference), results, strict=True):
        segment = Segment(result[0], (first % 2**36) * 1000 + 17, 0.3)
        kernels.add_reconstruction(rows, [segment], values.to(result[0].device))
    assert same_bits([results[0][0].cpu()], results[1])


def test_folding():
    rows = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    assert same_bits([cuda.fold(rows.to(DEVICE)).cpu()], [reference.fold(rows)])
