"""Lists of tensors as rows of elements: a stretch at a time is the whole at once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fullfed.sketch import SignBasis
from fullfed.sketch.segments import assign, boxes, elements


@st.composite
def strided(draw: st.DrawFn) -> torch.Tensor:
    """Up to four dimensions, permuted, cut, broadcast or left as they are."""
    shape = draw(st.lists(st.integers(1, 6), max_size=4))
    tensor = torch.arange(2 * max(1, torch.Size(shape).numel())).view(*shape, 2)
    tensor = tensor[..., 0] if draw(st.booleans()) else tensor
    return tensor.permute(draw(st.permutations(range(tensor.dim()))))


@given(strided(), st.data())
def test_a_stretch_is_that_of_the_whole(tensor, data):
    low, high = sorted(data.draw(st.integers(0, tensor.numel())) for _ in range(2))
    if low == high:
        return
    expected = tensor.reshape(-1)[low:high]
    assert torch.equal(elements(tensor, low, high), expected)
    assert sum(tensor[box].numel() for box in boxes(tensor.shape, low, high)) == high - low
    after = tensor.clone()
    assign(after, low, -expected)
    changed = tensor.reshape(-1).clone()
    changed[low:high] *= -1
    assert torch.equal(after.reshape(-1), changed)


def test_broadcast_tensors_are_read_without_being_spelled_out():
    row = torch.arange(5.0).expand(10**7, 5)
    assert torch.equal(elements(row, 3, 12), torch.tensor([3.0, 4, 0, 1, 2, 3, 4, 0, 1]))


def test_memory_that_is_not_aligned_is_not_handed_to_kernels() -> None:
    """As that of a tensor made from a buffer at an odd byte may be."""
    buffer = bytearray(4 * 50 + 1)
    odd = torch.frombuffer(buffer, dtype=torch.float32, offset=1, count=50)
    even, basis = torch.zeros(50), SignBasis(seed=1, round=1, coordinates=7)
    for model in ([odd], [even]):
        basis.reconstruct_(model, torch.arange(7.0))
    assert torch.equal(odd, even)
    assert torch.equal(basis.project([odd]), basis.project([even]))
