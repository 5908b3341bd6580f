"""Lists of tensors for the property tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st

from fullfed.sketch import Scales

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@st.composite
def tensors(draw: st.DrawFn, longest: int = 90) -> list[torch.Tensor]:
    """One to four tensors, mixed dtypes and sizes, some transposed, some of one element or none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    model = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(
            st.sampled_from([(1,), (0,), (128,), (longest**2 // 2,), (7, 3), (9, 4, 5)])
            | st.tuples(st.integers(1, longest), st.integers(1, longest))
        )
        numbers = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
        tensor = numbers.to(draw(st.sampled_from(DTYPES)))
        model.append(tensor.transpose(0, -1) if draw(st.booleans()) else tensor)
    if not any(tensor.numel() for tensor in model):
        model.append(torch.ones(1))
    return model


def copies(model: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies with the same strides."""
    return [tensor.detach().clone() for tensor in model]


def scales_of(model: Sequence[torch.Tensor], largest: int) -> Scales:
    """Exponents from -largest to largest, some other for each tensor."""
    rng = np.random.default_rng(len(model))

    def exponents(count: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(-largest, largest + 1, count).astype(np.int8))

    rows = (t.shape[0] if t.dim() else 1 for t in model)
    columns = (t.shape[1:].numel() if t.dim() > 1 else 1 for t in model)
    return Scales(tuple(map(exponents, rows)), tuple(map(exponents, columns)))


def same_bits(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    """Equal to the last bit, the sign of zero included."""
    kinds = {4: torch.int32, 2: torch.int16}
    return all(
        torch.equal(a.contiguous().view(kinds[a.itemsize]), b.contiguous().view(kinds[b.itemsize]))
        for a, b in zip(left, right, strict=True)
    )
