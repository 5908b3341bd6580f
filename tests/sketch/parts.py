"""Some rows of each of some tensors, as a process holds them of which others hold the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from fullfed.sketch import SignBasis
from fullfed.sketch.backends import backend_for
from fullfed.sketch.segments import readable, writable, zeros
from fullfed.sketch.shards import LocalTensors


def rows_of(data: st.DataObject, model: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """The first and past the last row of each, drawn."""
    edges = [sorted(data.draw(st.tuples(*[st.integers(0, len(t))] * 2))) for t in model]
    return [(first, last) for first, last in edges]


def part_of(model: Sequence[torch.Tensor], rows: Sequence[tuple[int, int]]) -> LocalTensors:
    held, offsets, begin = [], [], 0
    for tensor, (first, last) in zip(model, rows, strict=True):
        held.append(tensor[first:last])
        offsets.append(begin + first * tensor.shape[1:].numel())
        begin += tensor.numel()
    return LocalTensors(held, offsets, list(rows))


def without_others(
    model: Sequence[torch.Tensor], rows: Sequence[tuple[int, int]]
) -> list[torch.Tensor]:
    """Whole tensors, in which others' rows are zeros."""
    kept = [torch.zeros_like(tensor) for tensor in model]
    for target, tensor, (first, last) in zip(kept, model, rows, strict=True):
        target[first:last] = tensor[first:last]
    return kept


def project(
    basis: SignBasis,
    part: LocalTensors,
    before: Sequence[torch.Tensor] | None,
    elements: int,
    backend: str,
    **scaled: object,
) -> torch.Tensor:
    """A process's own coordinates, of tensors of so many elements in all."""
    device = part.tensors[0].device
    kernels, groups = backend_for(device, backend), -(-elements // (128 * basis.coordinates))
    partials = zeros(groups, basis.coordinates, device)
    for segments in readable(part, before, **scaled):
        kernels.add_projection(basis.rows(elements), segments, partials)
    return kernels.fold(partials)


def reconstruct(
    basis: SignBasis,
    part: LocalTensors,
    y: torch.Tensor,
    elements: int,
    backend: str,
    **scaled: object,
) -> None:
    kernels = backend_for(y.device, backend)
    for segments in writable(part, 0.5, **scaled):
        kernels.add_reconstruction(basis.rows(elements), segments, y)
