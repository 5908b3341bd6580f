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
    RademacherBasis,
    SignBasis,
    Stream,
    accumulate_,
    cuda,
    dense_cuda,
    perturb_,
    reference,
    sign_cuda,
)
from fullfed.sketch.backends import Direction, Piece, Rows
from fullfed.sketch.entries import NORMALS, SIGNS, truncated
from sketch.models import DTYPES, copies, on, same_bits, tensors, weights

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
few = settings(max_examples=60 if GPU else 3, deadline=None)
words = st.integers(0, 2**32 - 1)
roundings = st.sampled_from(["nearest", "stochastic"])


@pytest.fixture(autouse=True)
def narrow_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "BLOCK", 256)


def check(model: list[torch.Tensor], act: Callable[[list[torch.Tensor], str], torch.Tensor]):
    """The same results from Triton on its device and from the reference on the CPU."""
    here, there = copies(model), [tensor.to(DEVICE) for tensor in copies(model)]
    expected, found = act(here, "reference"), act(there, "triton")
    assert same_bits([*here, expected], [tensor.cpu() for tensor in [*there, found]])


@few
@given(tensors(longest=16), st.data(), words, roundings)
def test_sign_basis(model, data, number, rounding):
    total = sum(tensor.numel() for tensor in model)
    k = data.draw(st.integers(-(-total // 100), total))
    basis = SignBasis(seed=number, round=number, owner=number, coordinates=k)
    chosen = data.draw(weights(model))
    with_before = data.draw(st.booleans())

    def act(tensors_, backend):
        before = [tensor * 0.5 for tensor in tensors_] if with_before else None
        given_ = on(tensors_[0].device, chosen)
        y = basis.project(tensors_, before=before, weights=given_, backend=backend)
        options = {"inverse": given_, "rounding": rounding, "backend": backend}
        basis.reconstruct_(tensors_, y, scale=0.3, **options)
        return y

    check(model, act)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_columns_share_counters_where_rows_are_few(rows):
    rng = torch.Generator().manual_seed(rows)
    model = [torch.randn(size, generator=rng) for size in (130, 1, 500, 69)]
    basis = SignBasis(seed=1, round=1, coordinates=-(-700 // rows))

    def act(tensors_, backend):
        y = basis.project(tensors_, backend=backend)
        basis.reconstruct_(tensors_, y, backend=backend)
        return y

    check(model, act)


def test_a_counter_may_have_no_columns():
    """As those of large models, which begin with blocks; 22 would do here."""
    rng = torch.Generator().manual_seed(1)
    model = [torch.randn(size, generator=rng) for size in (130, 1, 500, 69)]
    basis = SignBasis(seed=1, round=1, coordinates=700)

    def act(tensors_, backend):
        with mock.patch.object(Rows, "counters", 50):
            y = basis.project(tensors_, backend=backend)
            basis.reconstruct_(tensors_, y, backend=backend)
        return y

    check(model, act)


@pytest.mark.parametrize("k", [4, 300])
def test_many_tensors_are_one_launch(monkeypatch, k):
    """Of several groups of rows, or many in one row; and one launch for each run of a dtype."""
    rng = torch.Generator().manual_seed(k)
    sizes = [300, 1, 0, 130, 64, 2, 55]
    model = [torch.randn(size, generator=rng) for size in sizes]
    basis = SignBasis(seed=1, round=1, coordinates=k)
    launched = []

    def act(tensors_, backend):
        y = basis.project(tensors_, backend=backend)
        basis.reconstruct_(tensors_, y, scale=0.3, backend=backend)
        accumulate_(tensors_, [Stream(7, 4)], [0.3], start=77, backend=backend)
        return y

    for module, name in (
        (sign_cuda, "project"),
        (sign_cuda, "reconstruct"),
        (dense_cuda, "add_combination"),
    ):
        counting = Launches(getattr(module, name), launched)
        monkeypatch.setattr(module, name, counting)
    check(model, act)
    assert len(launched) == 3
    launched.clear()
    mixed = [tensor.to(DTYPES[n // 3]) for n, tensor in enumerate(model)]
    check(mixed, act)
    assert len(launched) == 3 * 3


class Launches:
    """A kernel that notes each launch."""

    def __init__(self, kernel: Any, noted: list[object]) -> None:
        self.kernel, self.noted = kernel, noted

    def __getitem__(self, grid: object) -> Any:
        self.noted.append(grid)
        return self.kernel[grid]


@pytest.mark.parametrize("cls", [NormalBasis, RademacherBasis])
@few
@given(tensors(longest=40), st.data(), words, st.integers(1, 3), roundings)
def test_dense_bases(cls, model, data, number, count, rounding):
    total = sum(tensor.numel() for tensor in model)
    counts = (min(count, total),)
    basis = cls(seed=1, round=number, blocks=(range(len(model)),), coordinates=counts)
    chosen = data.draw(weights(model))

    def act(tensors_, backend):
        given_ = on(tensors_[0].device, chosen)
        y = basis.project(tensors_, weights=given_, backend=backend)
        options = {"inverse": given_, "rounding": rounding, "backend": backend}
        basis.reconstruct_(tensors_, y, scale=0.3, **options)
        return y

    check(model, act)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@few
@given(
    tensors(longest=40),
    st.lists(st.floats(-4, 4, width=32), max_size=3),
    st.integers(0, 2**40),
    roundings,
)
def test_directions(distribution, model, scalars, start, rounding):
    streams = [Stream(n, 4, n, n) for n in range(len(scalars))]

    def act(tensors_, backend):
        options = {"start": start, "rounding": rounding, "backend": backend}
        perturb_(tensors_, Stream(7, 4), 0.3, distribution, **options)
        accumulate_(tensors_, streams, scalars, distribution, **options)
        return torch.zeros(1)

    check(model, act)


@pytest.mark.parametrize("first", [2**32, 2**45 + 128])
def test_counters_beyond_32_bits(first):
    stream, scalars = Stream(1, 2, 3, 4), torch.tensor([0.5])
    for entries in (SIGNS, NORMALS, truncated(7), truncated(10**6)):
        results = []
        for kernels, device in ((cuda, DEVICE), (reference, "cpu")):
            near, far = (torch.zeros(900, device=device) for _ in range(2))
            for piece, row in ((Piece(near, 5), first), (Piece(far, first * 128 + 77), 0)):
                kernels.add_combination(
                    entries, [Direction(stream, row)], scalars.to(device), [piece]
                )
            results.append([near.cpu(), far.cpu()])
        assert same_bits(*results)
    rows, values = Rows(1000, stream, Stream(2, 2)), torch.arange(1000.0)
    results = [[torch.ones(1500, device=DEVICE)], [torch.ones(1500)]]
    for kernels, result in zip((cuda, reference), results, strict=True):
        piece = Piece(result[0], (first % 2**36) * 1000 + 17, 0.3)
        kernels.add_reconstruction(rows, [piece], values.to(result[0].device))
    assert same_bits([results[0][0].cpu()], results[1])


def test_folding():
    rows = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    assert same_bits([cuda.fold(rows.to(DEVICE)).cpu()], [reference.fold(rows)])
