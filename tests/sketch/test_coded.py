"""Reconstructing from codes: blocks are decoded where they are needed, to the same bits."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch import (
    BITS,
    Code,
    Coded,
    Largest,
    NormalBasis,
    Purpose,
    SignBasis,
    Stream,
    code_of,
    cpu,
)
from fullfed.sketch.backends import Rows
from fullfed.sketch.pieces import Rounding
from sketch.models import same_bits
from sketch.oracle import place

STREAM = Stream(3, Purpose.CODES, 1, 8)
CODES: list[Code] = [*(code_of(bits) for bits in BITS), Largest(16)]


def normals(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def both(basis: SignBasis, model: list[Tensor], coded: Coded, rounding: Rounding) -> bool:
    """Whether codes and numbers make the same of a model."""
    own, other = ([t.clone() for t in model] for _ in range(2))
    basis.reconstruct_(own, replace(coded, room=None).numbers, scale=0.3, rounding=rounding)
    basis.reconstruct_(other, coded, scale=0.3, rounding=rounding)
    return same_bits(own, other)


@settings(max_examples=30, deadline=None)
@given(
    code=st.sampled_from(CODES),
    sizes=st.lists(st.integers(0, 90_000), min_size=1, max_size=4),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), min_size=4),
    share=st.sampled_from([1, 2, 3, 10, 70, 500]),
    rounding=st.sampled_from(["nearest", "stochastic"]),
    shares=st.sampled_from([None, 1, 2, 4]),
)
def test_codes_are_reconstructed_from_like_their_numbers(
    code: Code,
    sizes: list[int],
    dtypes: list[torch.dtype],
    share: int,
    rounding: Rounding,
    shares: int | None,
) -> None:
    """Whatever is decoded within the kernel: blocks that stretches share, and the last."""
    model = [normals(size).to(dtype) for size, dtype in zip(sizes, dtypes, strict=False)]
    if not (elements := sum(sizes)):
        return
    basis = SignBasis(seed=1, round=2, coordinates=-(-elements // share))
    coded = code.encode(normals(basis.coordinates, 1), STREAM)
    with mock.patch.object(cpu, "_shares", return_value=shares):
        assert both(basis, model, coded, rounding)


@pytest.mark.parametrize(("code", "share"), [(Largest(1), 3), (Largest(16), 130)])
def test_a_large_models_codes_are_never_decoded_all_at_once(code: Code, share: int) -> None:
    elements = 2 * 128 * 65_536 + 1_000_003
    basis = SignBasis(seed=1, round=2, coordinates=elements // share)
    coded = code.encode(normals(basis.coordinates), STREAM)
    model = list(torch.zeros(elements).split(3_000_000))
    expected = [t.clone() for t in model]
    basis.reconstruct_(expected, replace(coded).numbers)
    decoding = mock.PropertyMock(side_effect=AssertionError)
    with (
        mock.patch.object(torch, "get_num_threads", return_value=1),
        mock.patch.object(Coded, "numbers", decoding),
    ):
        basis.reconstruct_(model, coded)
    assert same_bits(model, expected)


@pytest.mark.parametrize("rows", [2, 4, 20, 40, 64])
def test_the_signs_of_a_large_model_are_the_specification(rows: int) -> None:
    """Of elements here and there, and on backends alike; signs of columns begin with blocks."""
    elements = 128 * 65_536 + 5_000_000
    basis = SignBasis(seed=1, round=2, coordinates=-(-elements // rows))
    layout = basis.rows(elements)
    assert layout.counters % 65_536 == 0
    assert layout.counters >= layout.width * layout.depth / 128
    row = torch.zeros(elements)
    basis.reconstruct_([row], normals(basis.coordinates))
    y = normals(basis.coordinates)
    for g in torch.randint(elements, (300,), generator=torch.Generator().manual_seed(rows)):
        column, sign = place(basis, int(g), elements)
        assert float(row[g]) == sign * float(y[column])


def test_rows_of_128_keep_their_own_columns() -> None:
    assert Rows(1_000_000, STREAM, None, depth=128).counters == 1_000_000
    assert Rows(1_000_000, STREAM, None, depth=4).counters == 31_250
    assert Rows(65_536 * 32 + 1, STREAM, None, depth=4).counters == 2 * 65_536


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_backends_and_dense_bases_take_codes_too(backend: str) -> None:
    coded = Largest(1).encode(normals(100), STREAM)
    for basis in (
        SignBasis(seed=1, round=2, coordinates=100),
        NormalBasis(seed=1, round=2, blocks=(range(2),), coordinates=(100,)),
    ):
        model = [normals(300), normals(41)]
        expected = [t.clone() for t in model]
        basis.reconstruct_(expected, coded.numbers, backend=backend)
        basis.reconstruct_(model, coded, backend=backend)
        assert same_bits(model, expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 99}, "99 coded coordinates for a basis of 100"),
        ({"scales": torch.tensor([float("nan")])}, "scales of coded coordinates"),
        ({"scales": torch.tensor([2e30])}, "from 0 to 1e\\+30"),
        ({"scales": torch.tensor([-1.0])}, "from 0 to 1e\\+30"),
    ],
)
def test_codes_that_cannot_be_the_basis_are_refused(change: dict[str, object], said: str) -> None:
    coded = replace(Largest(1).encode(normals(100), STREAM), **change)  # type: ignore[arg-type]
    model = normals(300)
    kept = model.clone()
    with pytest.raises(UserError, match=said):
        SignBasis(seed=1, round=2, coordinates=100).reconstruct_([model], coded)
    assert torch.equal(model, kept)


@pytest.mark.parametrize(
    "change",
    [
        {"count": 300},
        {"codes": torch.zeros(13, dtype=torch.uint8)},
        {"codes": torch.zeros(14)},
        {"codes": torch.zeros(28, dtype=torch.uint8)[::2]},
        {"scales": torch.zeros(0)},
        {"scales": torch.zeros(1, dtype=torch.float64)},
        {"room": torch.zeros(100)},
    ],
)
def test_tensors_that_kernels_would_read_or_write_beyond_are_refused(
    change: dict[str, object],
) -> None:
    coded = Largest(1).encode(normals(100), STREAM)
    assert len(coded.codes) == 14
    with pytest.raises(UserError, match=r"of coded coordinates are .* expected"):
        replace(coded, **change)  # type: ignore[arg-type]
