"""Every backend, thread count and way of cutting the work gives the reference's bits."""

from __future__ import annotations

from collections.abc import Iterator

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
    cpu,
    perturb_,
    pieces,
    reference,
    threads_cpu,
)
from fullfed.sketch.backends import Direction, Piece, Rows
from fullfed.sketch.entries import NORMALS, SIGNS, truncated
from sketch.models import copies, same_bits, tensors, weights

scales = st.floats(-4, 4, width=32)
words = st.integers(0, 2**32 - 1)


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The work is cut finely, so that small tensors are cut at all."""
    monkeypatch.setattr(pieces, "STAGED", 1000)
    monkeypatch.setattr(pieces, "SERIAL", 300)
    monkeypatch.setattr(threads_cpu, "SMALL", 100)
    monkeypatch.setattr(cpu, "RUN", 300)
    monkeypatch.setattr(cpu, "LONG", 100)
    monkeypatch.setattr(cpu, "SHORTEST", 64)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def blocks(draw, count):
    cuts = sorted(draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    return tuple(range(low, high) for low, high in zip([0, *cuts], [*cuts, count], strict=True))


@settings(max_examples=40, deadline=None)
@given(tensors(), st.data(), words, words, scales)
def test_sign_basis(model, data, number, owner, scale):
    total = sum(tensor.numel() for tensor in model)
    k = data.draw(st.integers(1, total))
    basis = SignBasis(seed=number, round=number, owner=owner, coordinates=k)
    given = data.draw(weights(model))
    before = [tensor * 0.5 for tensor in model] if data.draw(st.booleans()) else None
    y, expected = (
        basis.project(model, before=before, weights=given, backend=backend)
        for backend in (None, "reference")
    )
    assert torch.equal(y, expected)
    rounding = data.draw(st.sampled_from(["nearest", "stochastic"]))
    results = [copies(model), copies(model)]
    for result, backend in zip(results, (None, "reference"), strict=True):
        basis.reconstruct_(
            result, y, scale=scale, inverse=given, rounding=rounding, backend=backend
        )
    assert same_bits(*results)


@pytest.mark.parametrize("cls", [NormalBasis, RademacherBasis])
@settings(max_examples=15, deadline=None)
@given(tensors(), st.data(), words, words, scales)
def test_dense_bases(cls, model, data, number, owner, scale):
    groups = blocks(data.draw, len(model))
    sizes = [sum(model[n].numel() for n in block) for block in groups]
    if 0 in sizes:
        return
    counts = tuple(data.draw(st.integers(1, min(size, 4))) for size in sizes)
    basis = cls(seed=number, round=number, owner=owner, blocks=groups, coordinates=counts)
    before = [tensor * 0.5 for tensor in model] if data.draw(st.booleans()) else None
    given = data.draw(weights(model))
    y, expected = (
        basis.project(model, before=before, weights=given, backend=backend)
        for backend in (None, "reference")
    )
    assert torch.equal(y, expected)
    rounding = data.draw(st.sampled_from(["nearest", "stochastic"]))
    results = [copies(model), copies(model)]
    for result, backend in zip(results, (None, "reference"), strict=True):
        basis.reconstruct_(
            result, y, scale=scale, inverse=given, rounding=rounding, backend=backend
        )
    assert same_bits(*results)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@settings(max_examples=15, deadline=None)
@given(
    tensors(),
    st.lists(scales, max_size=4),
    scales,
    st.integers(0, 2**40),
    st.sampled_from(["nearest", "stochastic"]),
)
def test_directions(distribution, model, scalars, scale, start, rounding):
    streams = [Stream(n, 4, n, n) for n in range(len(scalars))]
    results = [copies(model), copies(model)]
    for result, backend in zip(results, (None, "reference"), strict=True):
        options = {"start": start, "rounding": rounding, "backend": backend}
        perturb_(result, Stream(7, 4), scale, distribution, **options)
        accumulate_(result, streams, scalars, distribution, **options)
    assert same_bits(*results)


@pytest.mark.parametrize("first", [2**31 - 128, 2**32, 2**35 + 128, 2**50])
def test_counters_beyond_32_bits(first):
    """Directions and rows far into a stream, as models and bases of that size would need."""
    stream, scalars = Stream(1, 2, 3, 4), torch.tensor([0.5])
    for entries in (SIGNS, NORMALS, truncated(7), truncated(10**6)):
        results = []
        for kernels in (cpu, reference):
            near, far = torch.zeros(9000), torch.zeros(64 * 128)
            kernels.add_combination(entries, [Direction(stream, first)], scalars, [Piece(near, 5)])
            piece = Piece(far, first * 128 + 77)
            kernels.add_combination(entries, [Direction(stream, 0)], scalars, [piece])
            sums = torch.zeros(1)
            kernels.add_products(entries, [Direction(stream, first)], far.view(64, 128), sums)
            results.append([near, far, sums])
        assert same_bits(*results)
        near, far = results[0][:2]
        assert torch.equal(near[72:8264], far)
    rows, values = Rows(1000, stream, Stream(2, 2)), torch.arange(1000.0)
    if first < 2**45:
        results = [[torch.ones(5000)], [torch.ones(5000)]]
        for kernels, result in zip((cpu, reference), results, strict=True):
            kernels.add_reconstruction(rows, [Piece(result[0], first * 1000 + 17, 0.3)], values)
        assert same_bits(*results)


def test_every_16_bit_number_survives_and_rounds_like_torch():
    """All 65536 float16 and bfloat16 patterns, plus changes that round each way."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        numbers = patterns.view(dtype)
        numbers = numbers[torch.isfinite(numbers)]
        for scale in (0.0, 1e-7, 3e-4, 0.37, 2e4):
            ours, theirs = [numbers.clone()], [numbers.clone()]
            perturb_(ours, Stream(1, 4), scale)
            perturb_(theirs, Stream(1, 4), scale, backend="reference")
            assert same_bits(ours, theirs)


@pytest.mark.parametrize("count", [1, 127, 128, 129, 128**2 + 5])
def test_folding(count):
    rows = torch.randn(count, 7, generator=torch.Generator().manual_seed(0))
    assert same_bits([cpu.fold(rows)], [reference.fold(rows)])
