"""Triton against the reference: on a GPU where there is one, else through the interpreter.

test_triton.py runs this in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable

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
    perturb_,
    reference,
)
from fullfed.sketch.backends import Direction, Rows
from fullfed.sketch.entries import NORMALS, SIGNS, truncated
from sketch.models import copies, same_bits, tensors

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
few = settings(max_examples=60 if GPU else 2, deadline=None)
words = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def narrow_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "BLOCK", 256)


def check(model: list[torch.Tensor], act: Callable[[list[torch.Tensor], str], torch.Tensor]):
    """The same results from Triton on its device and from the reference on the CPU."""
    here, there = copies(model), [tensor.to(DEVICE) for tensor in copies(model)]
    expected, found = act(here, "reference"), act(there, "triton")
    assert same_bits([*here, expected], [tensor.cpu() for tensor in [*there, found]])


@few
@given(tensors(longest=16), st.data(), words, st.sampled_from(["nearest", "stochastic"]))
def test_sign_basis(model, data, number, rounding):
    total = sum(tensor.numel() for tensor in model)
    k = data.draw(st.integers(-(-total // 100), total))
    basis = SignBasis(seed=number, round=number, owner=number, coordinates=k)
    weights = data.draw(st.none() | st.just([0.1 + n for n in range(len(model))]))
    with_before = data.draw(st.booleans())

    def act(tensors_, backend):
        before = [tensor * 0.5 for tensor in tensors_] if with_before else None
        y = basis.project(tensors_, before=before, weights=weights, backend=backend)
        options = {"inverse": weights, "rounding": rounding, "backend": backend}
        basis.reconstruct_(tensors_, y, scale=0.3, **options)
        return y

    check(model, act)


@pytest.mark.parametrize("cls", [NormalBasis, RademacherBasis])
@few
@given(tensors(longest=40), words, st.integers(1, 3))
def test_dense_bases(cls, model, number, count):
    total = sum(tensor.numel() for tensor in model)
    counts = (min(count, total),)
    basis = cls(seed=1, round=number, blocks=(range(len(model)),), coordinates=counts)

    def act(tensors_, backend):
        y = basis.project(tensors_, backend=backend)
        basis.reconstruct_(tensors_, y, scale=0.3, backend=backend)
        return y

    check(model, act)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@few
@given(tensors(longest=40), st.lists(st.floats(-4, 4, width=32), max_size=3))
def test_directions(distribution, model, scalars):
    streams = [Stream(n, 4, n, n) for n in range(len(scalars))]

    def act(tensors_, backend):
        perturb_(tensors_, Stream(7, 4), 0.3, distribution, backend=backend)
        accumulate_(tensors_, streams, scalars, distribution, backend=backend)
        return torch.zeros(1)

    check(model, act)


@pytest.mark.parametrize("first", [2**32 - 1, 2**45 + 7])
def test_counters_beyond_32_bits(first):
    stream, scalars = Stream(1, 2, 3, 4), torch.tensor([0.5])
    for entries in (SIGNS, NORMALS, truncated(7), truncated(10**6)):
        results = []
        for kernels, device in ((cuda, DEVICE), (reference, "cpu")):
            piece = torch.empty(10, 128, device=device)
            kernels.combine(entries, [Direction(stream, first)], scalars.to(device), piece)
            results.append([piece.cpu()])
        assert same_bits(*results)
    rows, values = Rows(1000, stream, Stream(2, 2)), torch.arange(1000.0)
    results = [[torch.ones(1500, device=DEVICE)], [torch.ones(1500)]]
    for kernels, result in zip((cuda, reference), results, strict=True):
        step = values.to(result[0].device)
        kernels.add_reconstruction(rows, result[0], (first % 2**36) * 1000 + 17, step, 0.3)
    assert same_bits([results[0][0].cpu()], results[1])


def test_folding():
    rows = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    assert same_bits([cuda.fold(rows.to(DEVICE)).cpu()], [reference.fold(rows)])
