"""Random directions for zeroth-order methods."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.errors import UserError
from fullfed.sketch import Purpose, Stream, accumulate_, perturb_
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
    options = {"rounding": data.draw(st.sampled_from(["nearest", "stochastic"]))}
    streams, scalars = [Stream(1, 4), Stream(2, 4)], [0.3, -1.5]
    whole, parts, place = copies(model), copies(model), start
    perturb_(whole, streams[0], 0.7, distribution, start=start, **options)
    accumulate_(whole, streams, scalars, distribution, start=start, **options)
    for low, high in itertools.pairwise(sorted({0, len(model)} | cuts)):
        part, options["backend"] = parts[low:high], backend
        perturb_(part, streams[0], 0.7, distribution, start=place, **options)
        accumulate_(part, streams, scalars, distribution, start=place, **options)
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
