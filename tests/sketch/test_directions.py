"""Random directions for zeroth-order methods, and stochastic rounding."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.errors import UserError
from fullfed.sketch import Purpose, Stream, accumulate_, dither_, perturb_, round_
from sketch.models import copies, same_bits, tensors
from sketch.oracle import f32, field, normal_of

DISTRIBUTIONS = ["rademacher", "gaussian"]


def direction(stream, elements, distribution="rademacher"):
    weights = [torch.zeros(elements)]
    perturb_(weights, stream, 1.0, distribution)
    return weights[0]


def test_elements_come_from_the_specified_bits():
    stream = Stream(3, Purpose.DIRECTION, 1, 2)
    signs, gaussians = direction(stream, 20000), direction(stream, 20000, "gaussian")
    for g in (0, 127, 128, 129, 300, 1023, 1024, 16383, 16384, 19999):
        assert signs[g] == 1 - 2 * field(stream, 1, 128, g // 128, g % 128)
        assert gaussians[g] == normal_of(stream, g // 128, g % 128)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_taking_a_step_and_its_opposite_from_zero_cancels(distribution):
    weights = [torch.zeros(33, 9), torch.zeros(5)]
    perturb_(weights, Stream(1, 4), 0.25, distribution)
    perturb_(weights, Stream(1, 4), -0.25, distribution)
    assert all(not tensor.any() for tensor in weights)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=4), st.integers(0, 5))
def test_accumulate_is_the_ordered_sum(distribution, sizes, count):
    total = sum(sizes)
    streams = [Stream(n, Purpose.DIRECTION, n) for n in range(count)]
    scalars = [0.1 * (n + 1) for n in range(count)]
    expected = np.zeros(total, dtype=f32)
    for stream, scalar in zip(streams, scalars, strict=True):
        expected = expected + f32(scalar) * direction(stream, total, distribution).numpy()
    start = np.random.default_rng(0).standard_normal(total).astype(f32)
    weights = [part.clone() for part in torch.from_numpy(start).split(sizes)]
    accumulate_(weights, streams, scalars, distribution)
    assert np.array_equal(torch.cat(weights).numpy(), start + expected)


def test_signs_have_mean_zero_and_are_signs():
    z = direction(Stream(1, 4), 1 << 18).double()
    assert abs(z.mean()) < 5 / math.sqrt(z.numel())
    assert (z.abs() == 1).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@settings(max_examples=25, deadline=None)
@given(tensors(), st.integers(0, 2**40), st.sampled_from(["numba", "reference"]), st.data())
def test_a_model_part_by_part_is_the_model_at_once(distribution, model, start, backend, data):
    """Whatever the parts: each starts where the last ended."""
    cuts = data.draw(st.sets(st.integers(1, len(model))))
    streams, scalars = [Stream(1, 4), Stream(2, 4)], [0.3, -1.5]
    whole, parts, place = copies(model), copies(model), start
    perturb_(whole, streams[0], 0.7, distribution, start=start)
    accumulate_(whole, streams, scalars, distribution, start=start)
    for low, high in itertools.pairwise(sorted({0, len(model)} | cuts)):
        part = parts[low:high]
        perturb_(part, streams[0], 0.7, distribution, start=place, backend=backend)
        accumulate_(part, streams, scalars, distribution, start=place, backend=backend)
        place += sum(tensor.numel() for tensor in part)
    assert same_bits(whole, parts)


def test_bad_input_changes_nothing():
    weights = [torch.ones(5)]
    for change in (perturb_, accumulate_):
        arguments = (Stream(1, 4), 1.0) if change is perturb_ else ([Stream(1, 4)], [1.0])
        with pytest.raises(UserError, match="start is -1"):
            change(weights, *arguments, start=-1)
    with pytest.raises(UserError, match="finite"):
        perturb_(weights, Stream(1, 4), float("inf"))
    with pytest.raises(UserError, match="1 scalars for 2"):
        accumulate_(weights, [Stream(1, 4), Stream(2, 4)], [1.0])
    assert torch.equal(weights[0], torch.ones(5))


ROUNDING = Stream(3, Purpose.ROUNDING, 9, 8)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_rounding_follows_the_specified_bits(backend):
    """The upper 16 bits of (bits of the float32 + 16 bits of the stream), counted over the list."""
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(3000).astype(f32))
    weights = [torch.zeros(1000).bfloat16(), torch.zeros(40, 50).bfloat16()]
    round_(weights, [values[:1000], values[1000:].view(40, 50)], ROUNDING, backend=backend)
    found = torch.cat([weight.flatten() for weight in weights]).view(torch.int16)
    for g in (0, 1, 127, 128, 999, 1000, 1023, 1024, 1025, 2999):
        bits = int(values[g].view(torch.int32)) & 0xFFFFFFFF
        kept = (bits + field(ROUNDING, 16, 128, g // 128, g % 128)) >> 16 & 0xFFFF
        assert int(found[g]) & 0xFFFF == kept


def test_what_bfloat16_holds_exactly_does_not_move():
    values = torch.cat([torch.arange(-128.0, 128.0), torch.tensor([float("inf"), -float("inf")])])
    weights = [torch.zeros_like(values).bfloat16()]
    round_(weights, [values], ROUNDING)
    assert torch.equal(weights[0].float(), values)


def test_nearest_loses_small_changes_and_stochastic_keeps_them_on_average():
    """400 steps of 1e-5; each is a twelfth of the distance between bfloat16s near 0.02."""
    nearest, stochastic = (torch.full((4096,), 0.02).bfloat16() for _ in range(2))
    start = nearest.double()
    for number in range(400):
        nearest.copy_(nearest.float() + 1e-5)
        round_([stochastic], [stochastic.float() + 1e-5], Stream(1, Purpose.ROUNDING, number))
    assert torch.equal(nearest.double(), start)
    moved = (stochastic.double() - start).numpy()
    assert abs(moved.mean() - 4e-3) < 5 * moved.std() / math.sqrt(moved.size)
    assert moved.std() < 1e-3


def test_only_float32_is_rounded_to_bfloat16():
    weights = [torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3)]
    with pytest.raises(UserError, match=r"tensor 1 is torch\.float32 to be rounded from"):
        round_(weights, [torch.ones(3), torch.ones(3)], ROUNDING)
    assert not weights[0].any()


DITHER = Stream(3, Purpose.DITHER)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dither_is_taken_away_by_rounding_and_follows_the_specified_bits(dtype):
    """Every number of the type: all exponents, subnormal ones, both signs, zeros, infinities."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = numbers[~numbers.isnan()]
    for backend in ("numba", "reference"):
        values = numbers.float()
        dither_([values], dtype, DITHER, backend=backend)
        assert torch.equal(values.to(dtype).view(torch.int16), numbers.view(torch.int16))
    dropped = 16 if dtype == torch.bfloat16 else 13
    for g in (1, 127, 128, 1023, 1024, 40_000):
        if numbers[g] == 0 or numbers[g].isinf():
            continue
        drawn = max(field(DITHER, 16, 128, g // 128, g % 128) >> (16 - dropped), 1)
        bits = int(numbers[g].float().view(torch.int32)) & 0xFFFFFFFF
        due = bits + drawn - 2 ** (dropped - 1)
        assert int(values[g].view(torch.int32)) & 0xFFFFFFFF == due


def test_dithered_weights_follow_changes_below_their_precision_on_average():
    """Half a step of bfloat16's grid at 0.02 is 6.1e-5; 1e-5 alone would never be seen."""
    weights = torch.full((1 << 16,), 0.02).bfloat16()
    exact = weights.float()
    dither_([exact], torch.bfloat16, DITHER)
    assert torch.equal((weights.float() + 1e-5).bfloat16(), weights)
    for change in (1e-5, -3e-5, 2e-4):
        seen = (exact + change).bfloat16().double() - weights.double()
        assert abs(float(seen.mean()) - change) < 4 * float(seen.std()) / 256
    other = weights.float()
    dither_([other], torch.bfloat16, Stream(4, Purpose.DITHER))
    assert not torch.equal(exact, other)


def test_only_float32_is_dithered():
    with pytest.raises(UserError, match="dither is of float32"):
        dither_([torch.ones(3).bfloat16()], torch.bfloat16, DITHER)
    with pytest.raises(UserError, match="dither is of float32"):
        dither_([torch.ones(3)], torch.float32, DITHER)
