"""Every backend, thread count and way of cutting the work gives the reference's bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.sketch import (
    BITS,
    GroupArgmax,
    NormalBasis,
    Purpose,
    SignBasis,
    Stream,
    accumulate_,
    code_of,
    cpu,
    perturb_,
    reference,
    segments,
)
from fullfed.sketch import scales as sketch_scales
from fullfed.sketch.backends import DirectionRows, Rows, Segment
from fullfed.sketch.entries import NORMALS, SIGNS, truncated
from sketch.models import copies, same_bits, scales_of, tensors

scales = st.floats(-4, 4, width=32)
words = st.integers(0, 2**32 - 1)


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The work is cut finely, so that small tensors are cut at all."""
    monkeypatch.setattr(segments, "STAGED", 1000)
    monkeypatch.setattr(segments, "SERIAL", 300)
    monkeypatch.setattr(sketch_scales, "SHORT", 8)
    monkeypatch.setattr(sketch_scales, "LONG", 2000)
    monkeypatch.setattr(cpu, "SMALL", 100)
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
    before = [tensor * 0.5 for tensor in model] if data.draw(st.booleans()) else None
    y, expected = (
        basis.project(model, before=before, backend=backend) for backend in (None, "reference")
    )
    assert torch.equal(y, expected)
    results = [copies(model), copies(model)]
    for result, backend in zip(results, (None, "reference"), strict=True):
        basis.reconstruct_(result, y, scale=scale, backend=backend)
    assert same_bits(*results)


@settings(max_examples=25, deadline=None)
@given(tensors(), st.data(), words, scales)
def test_scales(model, data, number, scale):
    total, own = sum(tensor.numel() for tensor in model), scales_of(model, 60)
    k = data.draw(st.integers(1, total))
    basis = SignBasis(seed=number, round=number, coordinates=k)
    before = [tensor * 0.5 for tensor in model] if data.draw(st.booleans()) else None
    results, ys = [copies(model), copies(model)], []
    for result, backend in zip(results, (None, "reference"), strict=True):
        options = {"scales": own, "backend": backend}
        ys.append(basis.project(model, before=before, **options))
        basis.reconstruct_(result, ys[0], scale=scale, **options)
        for distribution in ("rademacher", "gaussian"):
            perturb_(result, Stream(7, 4), scale, distribution, start=number, **options)
    assert same_bits(ys[:1], ys[1:])
    assert same_bits(*results)


@settings(max_examples=25, deadline=None)
@given(tensors(), st.data(), words, words, scales)
def test_dense_basis(model, data, number, owner, scale):
    groups = blocks(data.draw, len(model))
    sizes = [sum(model[n].numel() for n in block) for block in groups]
    if 0 in sizes:
        return
    counts = tuple(data.draw(st.integers(1, min(size, 4))) for size in sizes)
    basis = NormalBasis(seed=number, round=number, owner=owner, blocks=groups, coordinates=counts)
    before = [tensor * 0.5 for tensor in model] if data.draw(st.booleans()) else None
    y, expected = (
        basis.project(model, before=before, backend=backend) for backend in (None, "reference")
    )
    assert torch.equal(y, expected)
    results = [copies(model), copies(model)]
    for result, backend in zip(results, (None, "reference"), strict=True):
        basis.reconstruct_(result, y, scale=scale, backend=backend)
    assert same_bits(*results)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@settings(max_examples=15, deadline=None)
@given(tensors(), st.lists(scales, max_size=4), scales, st.integers(0, 2**40))
def test_directions(distribution, model, scalars, scale, start):
    streams = [Stream(n, 4, n, n) for n in range(len(scalars))]
    results = [copies(model), copies(model)]
    for result, backend in zip(results, (None, "reference"), strict=True):
        options = {"start": start, "backend": backend}
        perturb_(result, Stream(7, 4), scale, distribution, **options)
        accumulate_(result, streams, scalars, distribution, **options)
    assert same_bits(*results)


@settings(max_examples=25, deadline=None)
@given(
    code=st.sampled_from([*(code_of(bits) for bits in BITS), *map(GroupArgmax, (2, 16, 512))]),
    count=st.integers(1, 400) | st.sampled_from([5000, 65_535, 65_536, 65_538, 140_000]),
    streams=st.builds(
        Stream,
        seed=st.integers(0, 2**64 - 1),
        purpose=st.just(Purpose.CODES),
        round=words,
        owner=words,
    ),
    power=st.sampled_from([1, 5]),
    zeros=st.booleans(),
)
def test_codes(code, count, streams, power, zeros):
    """Encoded and decoded; with short last blocks, heavy tails and a first block of zeros."""
    rng = torch.Generator().manual_seed(count)
    numbers = torch.randn(count, generator=rng) ** power
    if zeros:
        numbers[: min(count, 65_536)] = 0
    own = code.encode(numbers, streams)
    expected = code.encode(numbers, streams, backend="reference")
    assert torch.equal(own.codes, expected.codes)
    assert same_bits([own.scales], [expected.scales])
    assert same_bits([own.numbers], [expected.decode("reference")])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**40), words)
def test_stochastic_rounding(count, offset, seed):
    wide = torch.randn(count, generator=torch.Generator().manual_seed(count))
    wide[count // 2] = float("inf") if seed % 2 else float("nan")
    results = [torch.zeros(count, dtype=torch.bfloat16) for _ in range(2)]
    for kernels, result in zip((cpu, reference), results, strict=True):
        kernels.round_to(result, wide, Stream(seed, Purpose.ROUNDING), offset)
    assert same_bits(*results)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**40), words, st.sampled_from([16, 13]))
def test_dither(count, offset, seed, dropped):
    dtype = torch.bfloat16 if dropped == 16 else torch.float16
    wide = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype).float()
    wide[count // 2] = (float("inf"), float("nan"), -0.0)[seed % 3]
    results = [wide.clone() for _ in range(2)]
    for kernels, result in zip((cpu, reference), results, strict=True):
        kernels.dither(result, Stream(seed, Purpose.DITHER), offset, dropped)
    assert same_bits(*([result] for result in results))


def test_nans_are_stored_as_the_specification_says():
    """Whatever their bits and sign, in place or not."""
    bits = {torch.bfloat16: 0x7FC0, torch.float16: 0x7E00}
    for dtype, stored in bits.items():
        patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        nans = patterns[patterns.isnan()]
        for model in ([nans.clone()], [nans.repeat_interleave(2)[::2]]):
            for backend in ("numba", "reference"):
                for distribution in ("rademacher", "gaussian"):
                    given = copies(model)
                    perturb_(given, Stream(1, 4), 0.5, distribution, backend=backend)
                    assert (given[0].contiguous().view(torch.int16) == stored).all()


@pytest.mark.parametrize("first", [2**31 - 128, 2**32, 2**35 + 128, 2**50])
def test_counters_beyond_32_bits(first):
    """Directions and rows far into a stream, as models and bases of that size would need."""
    stream, scalars = Stream(1, 2, 3, 4), torch.tensor([0.5])
    for entries in (SIGNS, NORMALS, truncated(7), truncated(10**6)):
        results = []
        for kernels in (cpu, reference):
            near, far = torch.zeros(9000), torch.zeros(64 * 128)
            kernels.add_combination(
                entries, [DirectionRows(stream, first)], scalars, [Segment(near, 5)]
            )
            segment = Segment(far, first * 128 + 77)
            kernels.add_combination(entries, [DirectionRows(stream, 0)], scalars, [segment])
            sums = torch.zeros(1)
            kernels.add_products(entries, [DirectionRows(stream, first)], far.view(64, 128), sums)
            results.append([near, far, sums])
        assert same_bits(*results)
        near, far = results[0][:2]
        assert torch.equal(near[72:8264], far)
    rows, values = Rows(1000, stream, Stream(2, 2)), torch.arange(1000.0)
    if first < 2**45:
        results = [[torch.ones(5000)], [torch.ones(5000)]]
        for kernels, result in zip((cpu, reference), results, strict=True):
            kernels.add_reconstruction(rows, [Segment(result[0], first * 1000 + 17, 0.3)], values)
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
