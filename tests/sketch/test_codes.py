"""Coordinates in a few bits: unbiased, as exact as the theory says, specified to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch import BITS, Code, Purpose, Stream, affordable, perturb_
from fullfed.sketch.hadamard import block_size, rotate_, rotate_back_

LENGTHS = st.integers(1, 300) | st.sampled_from([1023, 1024, 1025, 9000])


def stream(round: int = 0) -> Stream:
    return Stream(3, Purpose.CODES, round, 8)


def signs_of(count: int) -> Tensor:
    signs = torch.zeros(count)
    perturb_([signs], stream(), 1.0, backend="reference")
    return signs


def rotated_of(vector: Tensor, round: int = 0) -> Tensor:
    rotated = vector.clone()
    rotate_(rotated, stream(round))
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
    count = Code(1).nbytes(count) * 8 if count > 64 else 1 << count.bit_length()
    vector = normals(count, round)
    rotated = rotated_of(vector, round)
    assert float(rotated.norm()) == pytest.approx(float(vector.norm()), rel=1e-5)
    rotate_back_(rotated, stream(round))
    torch.testing.assert_close(rotated, vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (4, 2), (8, 4), (12, 4), (64, 8), (320, 32)])
def test_a_rotation_is_the_product_of_its_matrices(count: int, size: int) -> None:
    """In float64, by matrices."""
    assert block_size(count) == size
    first, second, third = signs_of(3 * count).double().view(3, count)
    expected = normals(count).double() * first
    expected = (expected.view(-1, size) @ hadamard(size)).flatten() * second
    expected = (hadamard(size) @ expected.view(size, -1)).flatten() * third
    expected = (expected.view(-1, size) @ hadamard(size)).flatten()
    rotated = rotated_of(normals(count)).double()
    torch.testing.assert_close(rotated, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_the_fidelity_is_that_of_the_quantiser(bits: int) -> None:
    """1 - D with D integrated numerically over the normal law."""
    code = Code(bits)
    x = np.linspace(-9, 9, 400_001)
    nearest = np.abs(code._levels().double().numpy() - x[:, None]).min(axis=1)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    distortion = np.trapezoid(nearest**2 * density, x)
    assert 1 - code.fidelity == pytest.approx(distortion, rel=2e-3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", [normals, heavy, sparse])
@pytest.mark.parametrize("count", [256, 300, 5000])
def test_codes_are_right_on_average_and_no_less_exact_than_they_say(
    bits: int, kind: object, count: int
) -> None:
    numbers, code, rounds = kind(count), Code(bits), 150  # type: ignore[operator]
    energy = float(numbers.square().sum())
    decoded = torch.stack(
        [
            code.decode(*code.encode(numbers, stream(round)), count, stream(round))
            for round in range(rounds)
        ]
    )
    noise = float((decoded - numbers).square().sum(1).mean()) / energy
    assert noise <= (1 / code.fidelity - 1) * 1.2
    left = float((decoded.mean(0) - numbers).square().sum()) / energy
    assert left <= noise / rounds * 2


@pytest.mark.parametrize("bits", BITS)
def test_codes_have_the_bits_they_say(bits: int) -> None:
    codes, scale = Code(bits).encode(normals(77), stream())
    assert codes.dtype == torch.uint8
    assert codes.shape == (Code(bits).nbytes(77),) == (math.ceil(80 * bits / 8),)  # C = 16
    assert scale.dtype == torch.float32
    assert scale.shape == (1,)


def test_nothing_is_coded_as_nothing() -> None:
    codes, scale = Code(1).encode(torch.zeros(9), stream())
    assert torch.equal(Code(1).decode(codes, scale, 9, stream()), torch.zeros(9))


def test_decoding_is_a_specified_sequence_of_float32_operations() -> None:
    """The whole of it once more, one number at a time: K = 7, C = 4, n = 8, m = 2."""
    code, count = Code(2), 7
    codes, scale = code.encode(normals(count), stream())
    levels = [np.float32(v) for v in (-1.510, -0.4528, 0.4528, 1.510)]
    bits = [byte >> (7 - n) & 1 for byte in codes.tolist() for n in range(8)]
    numbers = [bits[2 * n] + 2 * bits[2 * n + 1] for n in range(8)]
    x = [np.float32(levels[number] * scale.numpy()[0]) for number in numbers]
    z = signs_of(24).numpy()

    def transform(*places: int) -> None:
        for h in (1, 2):
            for i in (0, 1, 2, 3):
                if not i & h:
                    a, b = places[i], places[i + h]
                    x[a], x[b] = np.float32(x[a] + x[b]), np.float32(x[a] - x[b])
        for a in places:
            x[a] = np.float32(np.float32(0.5) * x[a])

    transform(0, 1, 2, 3)
    transform(4, 5, 6, 7)
    x = [x[k] * z[16 + k] for k in range(8)]
    transform(0, 2, 4, 6)
    transform(1, 3, 5, 7)
    x = [x[k] * z[8 + k] for k in range(8)]
    transform(0, 1, 2, 3)
    transform(4, 5, 6, 7)
    expected = [float(x[k] * z[k]) for k in range(count)]
    assert code.decode(codes, scale, count, stream()).tolist() == expected


@given(nbytes=st.integers(1, 10_000), most=st.integers(1, 5_000))
def test_a_budget_is_spent_on_what_counts_most(nbytes: int, most: int) -> None:
    def size(count: int, bits: int) -> int:
        return 4 * count if bits == 32 else Code(bits).nbytes(count)

    def worth(count: int, bits: int) -> float:
        return count * (1.0 if bits == 32 else Code(bits).fidelity)

    count, bits = affordable(nbytes, most)
    assert 1 <= count <= most
    assert size(count, bits) <= nbytes
    for other in (*BITS, 32):
        for fewer in range(1, min(most, 8 * nbytes // other) + 1, 1 + most // 50):
            if size(fewer, other) <= nbytes:
                assert worth(fewer, other) <= worth(count, bits) * 1.0001


def test_bits_that_there_is_no_code_of_are_refused() -> None:
    with pytest.raises(UserError, match="5 bits a coordinate: choose from 1 to 4, or 32"):
        Code(5)
