"""Lists of tensors for the property tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st

from fullfed.sketch import Weight

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


@st.composite
def weights(draw: st.DrawFn, model: Sequence[torch.Tensor]) -> list[Weight] | None:
    """None, or for each tensor a number, a tensor that broadcasts to it or a matrix's pair."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def numbers(*shape: int) -> torch.Tensor:
        return torch.from_numpy(np.asarray(rng.lognormal(size=shape), dtype=np.float32))

    def weight(tensor: torch.Tensor) -> Weight:
        shape = tuple(tensor.shape)
        shapes = [shape, shape[1:], (*shape[:-1], 1), ()]
        kind = draw(st.sampled_from(["number", "broadcast"] + ["pair"] * (len(shape) == 2)))
        if kind == "pair":
            return numbers(shape[0]), numbers(shape[1])
        return numbers(*draw(st.sampled_from(shapes))) if kind == "broadcast" else rng.lognormal()

    return [weight(tensor) for tensor in model] if draw(st.booleans()) else None


def on(device: str, given: list[Weight] | None) -> list[Weight] | None:
    """The same weights on another device."""
    if given is None:
        return None
    return [
        tuple(part.to(device) for part in w)  # type: ignore[misc]
        if isinstance(w, tuple)
        else w.to(device)
        if isinstance(w, torch.Tensor)
        else w
        for w in given
    ]


def copies(model: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies with the same strides."""
    return [tensor.detach().clone() for tensor in model]


def same_bits(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    """Equal to the last bit, the sign of zero included."""
    kinds = {4: torch.int32, 2: torch.int16}
    return all(
        torch.equal(a.contiguous().view(kinds[a.itemsize]), b.contiguous().view(kinds[b.itemsize]))
        for a, b in zip(left, right, strict=True)
    )
