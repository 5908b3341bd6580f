"""A process's rows are sketched as they are in the whole: their elements keep their numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed.sketch import SignBasis
from fullfed.sketch.backends import backend_for
from sketch.models import copies, same_bits, scales_of, tensors
from sketch.parts import part_of, project, reconstruct, rows_of, without_others

BACKENDS = ["reference", "numba"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_scales", [False, True])
@settings(max_examples=25, deadline=None)
@given(tensors(), st.data())
def test_a_part_is_projected_as_the_whole_without_the_others(backend, with_scales, model, data):
    elements = sum(tensor.numel() for tensor in model)
    basis = SignBasis(seed=elements, round=1, coordinates=data.draw(st.integers(1, elements)))
    rows = rows_of(data, model)
    before = [tensor * 0.5 for tensor in model] if data.draw(st.booleans()) else None
    scales = scales_of(model, 20) if with_scales else None
    part = part_of(model, rows)
    start = None if before is None else part_of(before, rows).tensors
    kernels = backend_for(torch.device("cpu"), backend)
    scaled = {"scales": part.scales(scales), "scaled": kernels.SCALED}
    found = project(basis, part, start, elements, backend, **scaled)
    kept = without_others(model, rows)
    old = None if before is None else without_others(before, rows)
    expected = basis.project(kept, before=old, scales=scales, backend="reference")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_scales", [False, True])
@settings(max_examples=25, deadline=None)
@given(tensors(), st.data())
def test_a_part_is_reconstructed_as_in_the_whole_and_nothing_else_is(
    backend, with_scales, model, data
):
    elements = sum(tensor.numel() for tensor in model)
    basis = SignBasis(seed=elements, round=1, coordinates=data.draw(st.integers(1, elements)))
    y = torch.randn(basis.coordinates, generator=torch.Generator().manual_seed(elements))
    rows, scales = rows_of(data, model), scales_of(model, 20) if with_scales else None
    whole, sharded = copies(model), copies(model)
    basis.reconstruct_(whole, y, scale=0.5, scales=scales, backend="reference")
    part = part_of(sharded, rows)
    kernels = backend_for(torch.device("cpu"), backend)
    scaled = {"scales": part.scales(scales), "scaled": kernels.SCALED}
    reconstruct(basis, part, y, elements, backend, **scaled)
    for old, new, found, (first, last) in zip(model, whole, sharded, rows, strict=True):
        assert same_bits([found[first:last]], [new[first:last]])
        assert same_bits([found[:first], found[last:]], [old[:first], old[last:]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_rows_with_gaps_go_four_at_a_time(backend):
    """From 8,192 coordinates on numba projects four rows of one tensor at once."""
    model = [torch.randn(400_000, generator=torch.Generator().manual_seed(1)).view(-1, 100)]
    model += [torch.randn(3000, 7, generator=torch.Generator().manual_seed(2))]
    basis = SignBasis(seed=1, round=1, coordinates=9000)
    rows, elements = [(700, 3100), (2000, 3000)], 421_000
    expected = basis.project(without_others(model, rows), backend="reference")
    found = project(basis, part_of(model, rows), None, elements, backend)
    assert torch.equal(found, expected)
