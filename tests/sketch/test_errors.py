"""Bad input: one sentence, and nothing modified."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fullfed.errors import UserError
from fullfed.sketch import NormalBasis, SignBasis
from fullfed.sketch.checks import is_finite

SIGN = SignBasis(seed=1, round=1, coordinates=4)
NORMAL = NormalBasis(seed=1, round=1, blocks=(range(0, 1), range(1, 2)), coordinates=(2, 1))


def model():
    return [torch.ones(3, 2), torch.ones(5)]


@pytest.mark.parametrize("count", [0, -1])
def test_a_basis_needs_a_coordinate(count):
    with pytest.raises(UserError, match="at least 1"):
        SignBasis(seed=1, round=1, coordinates=count)
    with pytest.raises(UserError, match="at least 1"):
        NormalBasis(seed=1, round=1, blocks=(range(1),), coordinates=(count,))


@pytest.mark.parametrize("blocks", [(range(1), range(2, 3)), (range(1, 2), range(1)), (range(2),)])
def test_blocks_must_cover_the_tensors_in_order(blocks):
    with pytest.raises(UserError):
        NormalBasis(seed=1, round=1, blocks=blocks, coordinates=(1, 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("basis", [SIGN, NORMAL])
def test_a_change_that_is_not_finite(basis, bad):
    after = model()
    after[1][3] = bad
    with pytest.raises(UserError, match="not finite"):
        basis.project(after)
    with pytest.raises(UserError, match="not finite"):
        basis.project(after, before=model())


@pytest.mark.parametrize("basis", [SIGN, NORMAL])
@pytest.mark.parametrize(
    ("delta", "before", "message"),
    [
        ([], None, "at least one tensor"),
        ([torch.ones(6), torch.ones(5).int()], None, "tensor 1 is torch.int32"),
        ([torch.ones(6), torch.ones(5, device="meta")], None, "one device"),
        (model(), model()[:1], "2 tensors after training but 1 before"),
        (model(), [torch.ones(6), torch.ones(5)], "tensor 0"),
    ],
)
def test_tensors_that_cannot_be_projected(basis, delta, before, message):
    with pytest.raises(UserError, match=message):
        basis.project(delta, before=before)


def test_more_coordinates_than_elements():
    with pytest.raises(UserError, match="4 coordinates for a model of 3 elements"):
        SIGN.project([torch.ones(3)])
    with pytest.raises(UserError, match="block 0 has 1 elements but 2 coordinates"):
        NORMAL.project([torch.ones(1), torch.ones(5)])
    with pytest.raises(UserError, match="1 tensors for a basis over 2"):
        NORMAL.project([torch.ones(9)])


@pytest.mark.parametrize(("basis", "count"), [(SIGN, 4), (NORMAL, 3)])
@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda y: y[:-1], {}),
        (lambda y: y[None], {}),
        (lambda y: y.double(), {}),
        (lambda y: y * float("nan"), {}),
        (lambda y: y, {"scale": float("inf")}),
        (lambda y: y, {"scale": 1e39}),
        (lambda y: y, {"backend": "abacus"}),
    ],
)
def test_bad_reconstructions_change_nothing(basis, count, change, options):
    weights = model()
    with pytest.raises(UserError):
        basis.reconstruct_(weights, change(torch.ones(count)), **options)
    assert all(torch.equal(a, b) for a, b in zip(weights, model(), strict=True))


def test_a_device_without_a_backend_says_so():
    with pytest.raises(UserError, match="no sketch backend for device meta"):
        SIGN.project([torch.ones(9, device="meta")])


FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@given(
    count=st.sampled_from([1, 5, 32767, 32768, 32769, 100_000]),
    share=st.floats(0, 1, exclude_max=True),
    value=st.sampled_from([math.nan, math.inf, -math.inf, -7.5, 0.0, -0.0]),
    dtype=st.sampled_from(FLOATS),
    step=st.sampled_from([1, 2]),
)
def test_finite_is_that_of_numpy(
    count: int, share: float, value: float, dtype: torch.dtype, step: int
) -> None:
    values = torch.linspace(-1, 1, count * step)
    values[step * int(share * count)] = value
    values = values.to(dtype)[::step]
    assert is_finite(values) == bool(np.isfinite(values.double().numpy()).all())


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_finite(dtype: torch.dtype) -> None:
    assert is_finite(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_is_finite_and_one_number_too(dtype: torch.dtype) -> None:
    assert is_finite(torch.zeros(0, dtype=dtype))
    assert is_finite(torch.tensor(-2.0, dtype=dtype))
