"""Coordinates in a few bits: unbiased, as exact as the theory says, specified to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch import (
    BITS,
    Code,
    Coded,
    GroupArgmax,
    LloydMax,
    NormalBasis,
    Purpose,
    SignBasis,
    Stream,
    affordable,
    code_of,
    cpu,
    cpu_codes,
    perturb_,
)
from fullfed.sketch.backends import Rows, side
from sketch.models import same_bits
from sketch.oracle import decoded_block, place

LENGTHS = st.integers(1, 300) | st.sampled_from([1023, 1024, 1025, 9000, 65536])


def stream(round: int = 0) -> Stream:
    return Stream(3, Purpose.CODES, round, 8)


def signs_of(count: int) -> Tensor:
    signs = torch.zeros(count)
    perturb_([signs], stream(), 1.0, backend="reference")
    return signs


def rotated_of(vector: Tensor, round: int = 0) -> Tensor:
    rotated = vector.clone()
    cpu_codes.rotate(rotated.numpy(), len(vector), 0, cpu._key(stream(round)))
    return rotated


def hadamard(size: int) -> Tensor:
    """Sylvester's matrix, orthonormal."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), matrix)
    return matrix / math.sqrt(size)


def normals(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def heavy(count: int) -> Tensor:
    return normals(count) ** 5


def sparse(count: int) -> Tensor:
    """Three entries of different sizes; the rest is 0."""
    return torch.tensor([1.0, 0.4, -0.2] + [0.0] * (count - 3))


@given(count=LENGTHS, round=st.integers(0, 100))
def test_a_rotation_keeps_lengths_and_is_undone(count: int, round: int) -> None:
    count = -(-count // side(count)) * side(count)
    vector = normals(count, round)
    rotated = rotated_of(vector, round)
    assert float(rotated.norm()) == pytest.approx(float(vector.norm()), rel=1e-5)
    cpu_codes.rotate_back(rotated.numpy(), count, 0, cpu._key(stream(round)))
    torch.testing.assert_close(rotated, vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (4, 2), (8, 4), (12, 4), (64, 8), (320, 32)])
def test_a_rotation_is_the_product_of_its_matrices(count: int, size: int) -> None:
    """In float64, by matrices."""
    assert side(count) == size
    first, second, third = signs_of(3 * count).double().view(3, count)
    expected = normals(count).double() * first
    expected = (expected.view(-1, size) @ hadamard(size)).flatten() * second
    expected = (hadamard(size) @ expected.view(size, -1)).flatten() * third
    expected = (expected.view(-1, size) @ hadamard(size)).flatten()
    rotated = rotated_of(normals(count)).double()
    torch.testing.assert_close(rotated, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", BITS[1:])
def test_the_fidelity_is_that_of_the_quantiser(bits: int) -> None:
    """1 - D with D integrated numerically over the normal law."""
    code = LloydMax(bits)
    x = np.linspace(-9, 9, 400_001)
    nearest = np.abs(np.array(code.packing.levels) - x[:, None]).min(axis=1)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    distortion = np.trapezoid(nearest**2 * density, x)
    assert 1 - code.fidelity == pytest.approx(distortion, rel=2e-3)


@pytest.mark.parametrize(
    ("group", "fidelity"), [(1, 2 / math.pi), (2, 2 / math.pi), (64, 0.10530), (1024, 0.011569)]
)
def test_the_fidelity_is_that_of_the_largest(group: int, fidelity: float) -> None:
    """E|x| = sqrt(2 / pi); of the larger of two 2 / sqrt(pi); simulated with a million draws."""
    assert GroupArgmax(group).fidelity == pytest.approx(fidelity, rel=1e-3)


CODES: list[Code] = [*map(GroupArgmax, (1, 8, 16, 512)), *map(LloydMax, BITS[1:])]


KINDS = [(code, kind) for code in CODES for kind in (normals, heavy)]
KINDS += [(code, sparse) for code in CODES[:1] + CODES[4:]]


@pytest.mark.parametrize(("code", "kind"), KINDS)
@pytest.mark.parametrize("count", [300, 5000, 66_000])  # the last in two blocks
def test_codes_are_right_on_average_and_no_less_exact_than_they_say(
    code: Code, kind: Callable[[int], Tensor], count: int
) -> None:
    numbers, rounds = kind(count), 100
    energy = float(numbers.square().sum())
    decoded = torch.stack([code.encode(numbers, stream(round)).numbers for round in range(rounds)])
    noise = float((decoded - numbers).square().sum(1).mean()) / energy
    assert noise <= (1 / code.fidelity - 1) * 1.2
    left = float((decoded.mean(0) - numbers).square().sum()) / energy
    assert left <= noise / rounds * 2


@pytest.mark.parametrize(
    ("code", "bits"),
    [
        (GroupArgmax(1), 80),
        (LloydMax(3), 240),
        (GroupArgmax(16), 5 * 5),
        (GroupArgmax(64), 7 * 2),
    ],
)
def test_codes_have_the_bits_they_say(code: Code, bits: int) -> None:
    sent = code.encode(normals(77), stream())
    codes, scale = sent.codes, sent.scales
    assert codes.dtype == torch.uint8
    assert codes.shape == (code.nbytes(77),) == (math.ceil(bits / 8),)
    assert scale.dtype == torch.float32
    assert scale.shape == (1,)


def test_nothing_is_coded_as_nothing() -> None:
    for code in CODES:
        assert torch.equal(code.encode(torch.zeros(9), stream()).numbers, torch.zeros(9))


@given(codes=st.binary(min_size=18, max_size=18), code=st.sampled_from(CODES[1:4]))
def test_whatever_bytes_come_they_are_places_in_their_groups(
    codes: bytes, code: GroupArgmax
) -> None:
    """Nothing that a stranger sends reaches beyond a group, or holds more than one number in it."""
    count = 8 * 18 // code.group.bit_length() * code.group
    assert code.nbytes(count) == 18
    sent = torch.frombuffer(bytearray(codes), dtype=torch.uint8)
    coded = Coded(code, sent, torch.tensor([0.5]), count, stream())
    numbers = np.zeros(count, dtype=np.float32)
    cpu_codes.unpack_groups(numbers, count, cpu._blocks(coded.message), 0, np.float32(0.5))
    assert set(np.abs(numbers).reshape(-1, code.group).sum(1).tolist()) == {0.5}


@pytest.mark.parametrize("backend", ["reference", "numba"])
@settings(max_examples=60, deadline=None)
@given(code=st.sampled_from([*CODES, GroupArgmax(2), GroupArgmax(256)]), count=st.integers(1, 90))
@example(code=GroupArgmax(2), count=1)  # zeros that make C larger
@example(code=GroupArgmax(8), count=2)
@example(code=GroupArgmax(16), count=3)
@example(code=GroupArgmax(256), count=62)
def test_decoding_is_the_specification(backend: str, code: Code, count: int) -> None:
    """One number at a time."""
    sent = code.encode(normals(count), stream(count), backend=backend)
    packing = code.packing
    message = sent.codes.tolist(), float(sent.scales[0]), count, stream(count)
    expected = decoded_block(*message, packing.levels, packing.group, packing.bits)
    assert sent.decode(backend).tolist() == expected


@given(count=st.integers(1, 10**9), code=st.sampled_from(CODES))
def test_only_the_last_block_is_shorter_and_has_zeros(code: Code, count: int) -> None:
    padded, rest = code.padded(count), code.padded(count) % 65_536
    assert code.blocks(count) == math.ceil(count / 65_536) == math.ceil(padded / 65_536)
    assert 0 <= padded - count < max(side(count % 65_536), getattr(code, "group", 1))
    assert rest % side(rest) == 0
    assert code.nbytes(count) == math.ceil(code.nbytes(65_536) * padded / 65_536)


def test_a_block_of_zeros_is_decoded_as_zeros() -> None:
    """Each has a scale of its own: here the first is 0 and the last is small."""
    numbers = torch.cat([torch.zeros(70_000), normals(70_000), 1e-6 * normals(60_000)])
    for code in CODES:
        sent = code.encode(numbers, stream())
        decoded = sent.numbers
        assert float(sent.scales[0]) == 0
        assert not decoded[:65_536].any()
        error = (decoded - numbers)[3 * 65_536 :].norm() / numbers[3 * 65_536 :].norm()
        assert float(error) < (1 / code.fidelity - 1) ** 0.5 * 1.2


@pytest.mark.parametrize("code", CODES)
def test_numbers_are_decoded_to_where_others_were(code: Code) -> None:
    sent, out = code.encode(normals(300), stream()), normals(code.padded(300))
    decoded = replace(sent, room=out).numbers
    assert decoded.data_ptr() == out.data_ptr()
    assert torch.equal(decoded, sent.numbers)


@given(nbytes=st.integers(1, 3_000), most=st.integers(1, 5_000), times=st.integers(1, 2))
def test_a_budget_is_spent_on_what_counts_most(nbytes: int, most: int, times: int) -> None:
    def worth(count: int, code: Code | None) -> float:
        return count * (code.fidelity**times if code else 1.0)

    count, code = affordable(nbytes, most, times)
    assert 1 <= count <= most
    assert (code.nbytes(count) if code else 4 * count) <= nbytes
    assert worth(min(most, nbytes // 4), None) <= worth(count, code)
    for other in CODES:
        limit = most // 4 if isinstance(other, GroupArgmax) and other.group > 1 else most
        for fewer in range(1, limit + 1, 1 + limit // 20):
            if other.nbytes(fewer) <= nbytes:
                assert worth(fewer, other) <= worth(count, code) * (1 + 1e-9)


def test_bits_that_there_is_no_code_of_are_refused() -> None:
    with pytest.raises(UserError, match="5 bits a coordinate: choose from 1 to 4, or 32"):
        code_of(5)


def test_a_groups_code_is_its_place_lowest_bit_first_and_then_its_sign() -> None:
    """Groups of 4: place 2 (01), positive (1); place 1 (10), negative (0); unused bits are 0."""
    held = np.array([1.0, -2.0, 3.0, 0.0, 0.5, -4.0, 1.0, 2.0], dtype=np.float32)
    coded = Coded(GroupArgmax(4), torch.zeros(1, dtype=torch.uint8), torch.zeros(1), 8, stream())
    blocks = cpu._blocks(coded.message)
    assert cpu_codes.pack_groups(held, 8, blocks, 0) == 7.0
    assert coded.codes.tolist() == [0b01110000]
    cpu_codes.unpack_groups(held, 8, blocks, 0, np.float32(0.5))
    assert held.tolist() == [0.0, 0.0, 0.5, 0.0, 0.0, -0.5, 0.0, 0.0]


@pytest.mark.parametrize(("size", "bias"), [(1, 0.0), (2, 0.1), (8, 0.44), (16, 0.13)])
def test_small_blocks_are_biased(size: int, bias: float) -> None:
    """Docs/sketch.md: 1 among numbers of 0.1, as signs; the noise of this mean is 0.01."""
    numbers, rounds = torch.full((size,), 0.1), 6000
    numbers[0] = 1.0
    found = [GroupArgmax(1).encode(numbers, stream(n)).numbers for n in range(rounds)]
    off = torch.stack(found).mean(0) - numbers
    assert float(off.norm() / numbers.norm()) == pytest.approx(bias, abs=0.02)


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
    assert Rows(1_000_000, stream(), None, depth=128).counters == 1_000_000
    assert Rows(1_000_000, stream(), None, depth=4).counters == 31_250
    assert Rows(65_536 * 32 + 1, stream(), None, depth=4).counters == 2 * 65_536


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_backends_and_dense_bases_take_codes_too(backend: str) -> None:
    coded = GroupArgmax(1).encode(normals(100), stream())
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
    coded = replace(GroupArgmax(1).encode(normals(100), stream()), **change)  # type: ignore[arg-type]
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
    coded = GroupArgmax(1).encode(normals(100), stream())
    assert len(coded.codes) == 14
    with pytest.raises(UserError, match=r"of coded coordinates are .* expected"):
        replace(coded, **change)  # type: ignore[arg-type]
