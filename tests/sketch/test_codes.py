"""Coordinates in a few bits: unbiased, as exact as the theory says, specified to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch import (
    BITS,
    Code,
    Largest,
    Purpose,
    Rounded,
    Stream,
    affordable,
    code_of,
    cpu,
    decoding_cpu,
    encoding_cpu,
    perturb_,
    rotation_cpu,
    threads_cpu,
)
from fullfed.sketch.blocks import side

LENGTHS = st.integers(1, 300) | st.sampled_from([1023, 1024, 1025, 9000, 65536])


def stream(round: int = 0) -> Stream:
    return Stream(3, Purpose.CODES, round, 8)


def unpacked(code: Largest, sent: Tensor, count: int) -> np.ndarray:
    """What codes say before it is rotated back, of level 0.5."""
    numbers = normals(count).numpy()
    _, bits, places, _ = code.packing()
    decoding_cpu.unpack_largest(numbers, count, sent.numpy(), 0, bits, places, np.float32(0.5))
    return numbers


def signs_of(count: int) -> Tensor:
    signs = torch.zeros(count)
    perturb_([signs], stream(), 1.0, backend="reference")
    return signs


def rotated_of(vector: Tensor, round: int = 0) -> Tensor:
    rotated = vector.clone()
    rotation_cpu.rotate(rotated.numpy(), len(vector), 0, cpu.key(stream(round))[None])
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
    back, keys = torch.empty(count), cpu.key(stream(round))[None]
    rotation_cpu.rotate_back(rotated.numpy(), count, 0, keys, back.numpy(), 0)
    torch.testing.assert_close(back, vector, rtol=1e-4, atol=1e-5)


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
    code = Rounded(bits)
    x = np.linspace(-9, 9, 400_001)
    nearest = np.abs(code._levels().astype(np.float64) - x[:, None]).min(axis=1)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    distortion = np.trapezoid(nearest**2 * density, x)
    assert 1 - code.fidelity == pytest.approx(distortion, rel=2e-3)


@pytest.mark.parametrize(
    ("group", "fidelity"), [(1, 2 / math.pi), (2, 2 / math.pi), (64, 0.10530), (1024, 0.011569)]
)
def test_the_fidelity_is_that_of_the_largest(group: int, fidelity: float) -> None:
    """E|x| = sqrt(2 / pi); of the larger of two 2 / sqrt(pi); simulated with a million draws."""
    assert Largest(group).fidelity == pytest.approx(fidelity, rel=1e-3)


CODES = [Largest(1), Largest(8), Largest(16), Largest(512), *map(Rounded, BITS[1:])]


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
    [(Largest(1), 80), (Rounded(3), 240), (Largest(16), 5 * 5), (Largest(64), 7 * 2)],  # C = 16
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
def test_whatever_bytes_come_they_are_places_in_their_groups(codes: bytes, code: Largest) -> None:
    """Nothing that a stranger sends reaches beyond a group, or holds more than one number in it."""
    count = 8 * 18 // code.group.bit_length() * code.group
    assert code.nbytes(count) == 18
    sent = torch.frombuffer(bytearray(codes), dtype=torch.uint8)
    numbers = unpacked(code, sent, count)
    assert set(np.abs(numbers).reshape(-1, code.group).sum(1).tolist()) == {0.5}


def test_decoding_is_a_specified_sequence_of_float32_operations() -> None:
    """The whole of it once more, one number at a time: K = 7, C = 4, n = 8, m = 2."""
    code, count = Rounded(2), 7
    sent = code.encode(normals(count), stream())
    levels = [np.float32(v) for v in (-1.510, -0.4528, 0.4528, 1.510)]
    bits = [byte >> (7 - n) & 1 for byte in sent.codes.tolist() for n in range(8)]
    numbers = [bits[2 * n] + 2 * bits[2 * n + 1] for n in range(8)]
    x = [np.float32(levels[number] * sent.scales.numpy()[0]) for number in numbers]
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
    assert sent.numbers.tolist() == expected


def levels_of(code: Code, codes: np.ndarray, scale: np.float32, count: int) -> np.ndarray:
    """What the codes of a block stand for, bit by bit."""
    bits = np.unpackbits(codes)
    width = code._bits if isinstance(code, Largest) else code.bits  # type: ignore[attr-defined]
    rows = count // code.group if isinstance(code, Largest) else count
    sent = bits[: rows * width].reshape(rows, width)
    if not isinstance(code, Largest):
        return code._levels()[sent @ (1 << np.arange(width))] * scale  # type: ignore
    numbers = np.zeros((rows, code.group), dtype=np.float32)
    places = sent[:, :-1] @ (1 << np.arange(width - 1))
    numbers[np.arange(rows), places] = np.where(sent[:, -1], scale, -scale)
    return numbers.ravel()


def transformed(rows: np.ndarray) -> np.ndarray:
    """Of each row, level by level."""
    size, half = rows.shape[1], 1
    while half < size:
        pairs = rows.reshape(len(rows), -1, 2, half)
        rows = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        half *= 2
    return rows.reshape(-1, size) * np.float32(size**-0.5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("count", "blocks"), [(50, 1), (300, 1), (5000, 1), (65_536, 1), (70_000, 2), (200_000, 4)]
)
@pytest.mark.parametrize("code", CODES)
def test_decoding_is_the_specified_one_in_numpy(
    code: Code, count: int, blocks: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_cpu, "SMALL", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    sent = code.encode(normals(count), stream())
    codes, scales = sent.codes, sent.scales
    assert len(scales) == blocks
    padded, expected = code.padded(count), []
    signs = signs_of(3 * padded).numpy()
    for n, first in enumerate(range(0, padded, 65_536)):
        length = min(65_536, padded - first)
        size, z = side(length), signs[3 * first : 3 * (first + length)].reshape(3, -1)
        own = codes.numpy()[len(codes) * first // padded :]
        x = levels_of(code, own, scales.numpy()[n], length)
        x = transformed(x.reshape(-1, size)).ravel() * z[2]
        x = transformed(x.reshape(size, -1).T).T.ravel() * z[1]
        expected.append(transformed(x.reshape(-1, size)).ravel() * z[0])
    assert np.array_equal(sent.numbers.numpy(), np.concatenate(expected)[:count])


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
        limit = most // 4 if isinstance(other, Largest) and other.group > 1 else most
        for fewer in range(1, limit + 1, 1 + limit // 20):
            if other.nbytes(fewer) <= nbytes:
                assert worth(fewer, other) <= worth(count, code) * (1 + 1e-9)


def test_bits_that_there_is_no_code_of_are_refused() -> None:
    with pytest.raises(UserError, match="5 bits a coordinate: choose from 1 to 4, or 32"):
        code_of(5)


def test_a_groups_code_is_its_place_lowest_bit_first_and_then_its_sign() -> None:
    """Groups of 4: place 2 (01), positive (1); place 1 (10), negative (0)."""
    sent = torch.tensor([0b01110000], dtype=torch.uint8)
    assert unpacked(Largest(4), sent, 8).tolist() == [0.0, 0.0, 0.5, 0.0, 0.0, -0.5, 0.0, 0.0]
    held = np.array([1.0, -2.0, 3.0, 0.0, 0.5, -4.0, 1.0, 2.0], dtype=np.float32)
    codes, (_, bits, places, _) = np.zeros(1, dtype=np.uint8), Largest(4).packing()
    assert encoding_cpu.pack_largest(held, 8, codes, 0, bits, places) == 7.0
    assert codes.tolist() == sent.tolist()
