"""What waits in a file comes back bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fullfed import payloads
from fullfed.errors import UserError
from fullfed.training.offload import Offload, copies, restored


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    tensors = [
        torch.randn(3, 5).to(dtype),
        torch.tensor([float("nan"), float("inf"), -0.0]).to(dtype),
        torch.randn(4, 6).to(dtype).T,
        torch.tensor(2.5).to(dtype),
        torch.randn(0, 3).to(dtype),
    ]
    with Offload() as store:
        fetches = [store.put(tensor) for tensor in tensors]
        for tensor, fetch in [*zip(tensors, fetches, strict=True)][::-1]:  # in any order
            values = fetch()
            assert values.shape == tensor.shape
            assert values.dtype == dtype
            assert torch.equal(bits(values), bits(tensor))


@pytest.mark.filterwarnings("error")
def test_copies_of_large_tensors_are_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "LARGE", 100)
    tensors = {
        "odd": torch.randn(3, 5),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(3.0),
        "short": torch.randn(7).bfloat16(),
        "turned": torch.randn(4, 3).t(),
    }
    found = copies(tensors)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.zero_()
    for name, tensor in kept.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert found[name].data_ptr() % 64 == 0
    assert "(deleted)" in mapping_of(found["odd"]), "it is in no file without a name"


def mapping_of(tensor: Tensor) -> str:
    """What the kernel says of the memory that a tensor is in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return line
    return ""


@pytest.mark.parametrize("large", [payloads.LARGE, -1])
@pytest.mark.parametrize("offload", [True, False])
def test_parameters_are_restored_also_when_a_visit_fails(
    monkeypatch: pytest.MonkeyPatch, offload: bool, large: int
) -> None:
    monkeypatch.setattr(payloads, "LARGE", large)
    parameters = {"a": nn.Parameter(torch.randn(3, 4)), "b": nn.Parameter(torch.randn(5))}
    wanted = {name: p.detach().clone() for name, p in parameters.items()}

    def visit() -> None:
        with restored(parameters, {}, offload) as before, torch.no_grad():
            assert before.keys() == (set() if offload else {"a", "b"})
            for parameter in parameters.values():
                parameter.mul_(2)
            raise RuntimeError("a visit that fails")

    with pytest.raises(RuntimeError, match="a visit that fails"):
        visit()
    assert all(torch.equal(parameters[name], wanted[name]) for name in wanted)


def test_a_full_disk_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        return Path("/dev/full").open("w+b", buffering=0)

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    parameter = nn.Parameter(torch.ones(8))
    with (
        pytest.raises(UserError, match=r"No space left on device.*TMPDIR"),
        restored({"a": parameter}, {}, offload=True),
    ):
        raise AssertionError("nothing should have begun")
    assert torch.equal(parameter.detach(), torch.ones(8))
