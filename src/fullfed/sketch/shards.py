"""Sharded tensors, of which each process holds some rows: a sketch is made where they lie.

Torch's DTensor says of a tensor's part in this process which part it is. Its elements keep the
numbers that they have in the whole list of whole tensors, so what is added to them is the same bit
for bit. Coordinates are sums over all elements: each process adds up its own, and what the
processes have come to is added in their order.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch.scales import Scales

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_DTENSORS = "torch.distributed.tensor"  # takes long to import, and nobody has one who has not


@dataclass(frozen=True)
class LocalTensors:
    """The part of a list of tensors that this process holds.

    Attributes:
        tensors: plain ones: some rows of each, maybe none; or all of each.
        offsets: the number of the first element of each in the list of whole tensors.
        rows: the first and past the last row of each; None where all are here.
        mesh: of the processes that hold the other rows; None where all are here.
    """

    tensors: list[Tensor]
    offsets: list[int]
    rows: list[tuple[int, int]] | None = None
    mesh: DeviceMesh | None = None

    @staticmethod
    def of(tensors: Sequence[Tensor], start: int = 0) -> LocalTensors:
        """
        Args:
            start: the number of the first element of all.

        Raises:
            UserError: some are sharded and others are not, or not by rows over one row of devices.
        """
        sizes = [tensor.numel() for tensor in tensors]
        begins = list(itertools.accumulate(sizes[:-1], initial=start))
        sharded = [_is_sharded(tensor) for tensor in tensors]
        if not any(sharded):
            return LocalTensors([tensor.detach() for tensor in tensors], begins)
        mesh = None
        own, offsets, rows = [], [], []
        for number, tensor in enumerate(tensors):
            mesh = mesh or getattr(tensor, "device_mesh", None)
            first, last = _own_rows(number, tensor, mesh)
            own.append(tensor.detach().to_local())  # type: ignore[attr-defined]
            rows.append((first, last))
            offsets.append(begins[number] + first * math.prod(tensor.shape[1:]))
        return LocalTensors(own, offsets, rows, mesh)

    def scales(self, scales: Scales | None) -> Scales | None:
        """Those of the rows that are here, of scales of the whole tensors."""
        if scales is None or self.rows is None:
            return scales
        pairs = zip(scales.rows, self.rows, strict=True)
        return Scales(tuple(rows[first:last] for rows, (first, last) in pairs), scales.columns)

    def added(self, values: Tensor) -> Tensor:
        """The sum of all processes' values, in their order: the same bits in each of them."""
        return values if self.mesh is None else added(values, self.mesh)

    def total(self, number: float) -> float:
        """The same of a number of each."""
        return number if self.mesh is None else total(number, self.mesh)


def added(values: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum of all processes' values, in the order of the processes: the same bits in each.

    Args:
        values: on the process's device, contiguous, of the same shape and dtype in all.
        mesh: of the processes.
    """
    from torch import distributed

    each = [torch.empty_like(values) for _ in range(mesh.size())]
    distributed.all_gather(each, values, group=mesh.get_group())
    total = each[0]
    for other in each[1:]:
        total += other
    return total


def total(number: float, mesh: DeviceMesh) -> float:
    """The same of a number of each, in float64."""
    return float(added(torch.tensor([number], dtype=torch.float64, device=mesh.device_type), mesh))


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its rows, which are brought together here if they are not; detached.

    All processes that hold some must ask for it.
    """
    own = tensor.detach()
    return own.full_tensor() if _is_sharded(own) else own  # type: ignore[attr-defined]


def hold_(tensor: Tensor, values: Tensor) -> None:
    """Give a tensor values, of which each process takes its rows.

    Args:
        values: a plain tensor of the whole shape.
    """
    own = tensor.detach()
    if not _is_sharded(own):
        own.copy_(values)
        return
    first, last = _own_rows(0, own, own.device_mesh)  # type: ignore[attr-defined]
    own.to_local().copy_(values[first:last])  # type: ignore[attr-defined]


def _is_sharded(tensor: Tensor) -> bool:
    known = sys.modules.get(_DTENSORS)
    return known is not None and isinstance(tensor, known.DTensor)


def _own_rows(number: int, tensor: Any, mesh: Any) -> tuple[int, int]:
    """The first and past the last row of a tensor that this process holds: as torch.chunk has it.

    Raises:
        UserError: it is not sharded in this way.
    """
    if not _is_sharded(tensor) or tensor.device_mesh != mesh or mesh.ndim != 1:
        raise UserError(
            f"tensor {number} is not sharded over the same devices as the others; "
            "shard all, over one row of devices."
        )
    if not tensor.placements[0].is_shard(0):
        raise UserError(f"tensor {number} is not sharded by its rows, as fully_shard does it.")
    chunk = -(-tensor.shape[0] // mesh.size())
    first = min(mesh.get_local_rank() * chunk, tensor.shape[0])
    return first, min(first + chunk, tensor.shape[0])


def mesh_of(tensors: Iterable[Tensor]) -> DeviceMesh | None:
    """The devices that tensors are sharded over; None where they are not."""
    first = next(iter(tensors))
    return first.device_mesh if _is_sharded(first) else None  # type: ignore[attr-defined]
