"""Coordinates in few bits by Triton against the reference, as triton_cases.py; run with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fullfed.sketch import (
    Code,
    Coded,
    GroupArgmax,
    LloydMax,
    Purpose,
    SignBasis,
    Stream,
    cuda,
)
from sketch.models import same_bits

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STREAM = Stream(3, Purpose.CODES, 5, 8)


@pytest.fixture(autouse=True)
def small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short blocks have several."""
    monkeypatch.setattr(cuda, "PROGRAM", 256)
    monkeypatch.setattr(cuda, "TRANSFORMS", 4)


def numbers(count: int) -> Tensor:
    """Of very different sizes."""
    return torch.randn(count, generator=torch.Generator().manual_seed(count)) ** 3


def check(code: Code, values: Tensor) -> None:
    expected = code.encode(values, STREAM, backend="reference")
    found = code.encode(values.to(DEVICE), STREAM, backend="triton")
    assert found.codes.device.type == found.scales.device.type == DEVICE
    assert torch.equal(found.codes.cpu(), expected.codes)
    decoded = expected.to(DEVICE).decode("triton")
    assert decoded.device.type == DEVICE
    assert same_bits(
        [found.scales.cpu(), decoded.cpu()], [expected.scales, expected.decode("reference")]
    )


@pytest.mark.parametrize(
    ("code", "count"),
    [
        (GroupArgmax(1), 1),
        (GroupArgmax(1), 777),
        (GroupArgmax(2), 1),  # zeros that make C larger
        (GroupArgmax(8), 2),
        (GroupArgmax(256), 62),
        (GroupArgmax(1024), 3000),  # more than a program has numbers
        (LloydMax(2), 300),
        (LloydMax(3), 601),  # bits across bytes, and some left
        (LloydMax(4), 25),
    ],
)
def test_short_blocks(code: Code, count: int) -> None:
    check(code, numbers(count))


@pytest.mark.parametrize("code", [GroupArgmax(1), LloydMax(3)])
def test_zeros_and_equals(code: Code) -> None:
    check(code, torch.zeros(40))
    values = torch.zeros(64)
    values[5] = 1.0  # rotated, all are as large
    check(code, values)


@pytest.fixture
def large_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks at once, and fewer of the interpreter's steps."""
    monkeypatch.setattr(cuda, "PROGRAM", 8192)
    monkeypatch.setattr(cuda, "TRANSFORMS", 128)
    monkeypatch.setattr(cuda, "BATCH", 2)


@pytest.mark.usefixtures("large_programs")
def test_a_whole_block_and_a_short_one() -> None:
    values = numbers(65_536 + 70)
    values[65_536:] *= 1e-3
    check(GroupArgmax(128), values)


@pytest.mark.usefixtures("large_programs")
@pytest.mark.parametrize("code", [GroupArgmax(16), LloydMax(3)])
def test_blocks_are_decoded_together_and_one_after_another(code: Code) -> None:
    """The interpreter would sum for long if they were encoded first."""
    count = 3 * 65_536 + 70
    rng = torch.Generator().manual_seed(1)
    codes = torch.randint(256, (code.nbytes(count),), generator=rng).to(torch.uint8)
    coded = Coded(code, codes, torch.tensor([1.0, 0.5, 0.0, 2.0]), count, STREAM)
    found = coded.to(DEVICE).decode("triton")
    assert same_bits([found.cpu()], [coded.decode("reference")])


@pytest.mark.parametrize("lanes", [1, 8])
def test_sums_are_in_order(lanes: int) -> None:
    """In float64, one number at a time; a scale in float32 would seldom tell."""
    terms = numbers(75).double() ** 3
    expected = []
    for block in (terms[:40], terms[40:]):
        sums, whole = [0.0] * lanes, len(block) - len(block) % lanes
        for k, term in enumerate(block.tolist()):
            sums[k % lanes if k < whole else 0] += term
        total = 0.0
        for part in sums:
            total += part
        expected.append(total)
    found = cuda._sums(terms.to(DEVICE), 40, 75, 2, lanes=lanes)
    assert found.tolist() == expected
    assert found.tolist() != cuda._sums(terms.to(DEVICE), 40, 75, 2, lanes=9 - lanes).tolist()


class _Divisors(TorchDispatchMode):
    """Collects what tensors are divided by."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[object] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.div.Tensor:
            self.found.append(args[1])
        return func(*args, **(kwargs or {}))


def test_what_is_divided_by_is_a_tensor_or_a_power_of_2() -> None:
    """By another Python number CUDA multiplies with its reciprocal: seldom other bits."""
    values = numbers(300).to(DEVICE)  # 320 in the block
    with _Divisors() as divisors:
        LloydMax(2).encode(values, STREAM, backend="triton")
    assert any(isinstance(divisor, Tensor) for divisor in divisors.found)
    assert all(isinstance(divisor, Tensor) or divisor == 2 for divisor in divisors.found)


def test_a_basis_decodes_where_the_weights_are() -> None:
    coded = GroupArgmax(8).encode(numbers(100), STREAM, backend="reference")
    basis, expected = SignBasis(seed=1, round=2, coordinates=100), numbers(341)
    found = expected.clone().to(DEVICE)
    basis.reconstruct_([expected], coded, backend="reference")
    basis.reconstruct_([found], coded, backend="triton")
    assert same_bits([found.cpu()], [expected])
