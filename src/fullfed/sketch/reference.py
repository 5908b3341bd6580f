"""The readable backend: the specification in torch and NumPy, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fullfed.sketch.backends import Direction, Rows
from fullfed.sketch.entries import Entries, signs
from fullfed.sketch.generator import Stream
from fullfed.sketch.layout import FOLD, LANES, fields, rotations


def add_projection(
    rows: Rows,
    flat: Tensor,
    before: Tensor | None,
    weight: float,
    offset: int,
    partials: Tensor,
) -> None:
    piece = flat.float() if before is None else flat.float() - before.float()
    piece = piece * weight
    width = rows.width
    first, count = _touched(width, offset, piece.numel())
    padded = torch.zeros(count * width, device=piece.device)
    padded[offset - first * width :][: piece.numel()] = piece
    columns = _columns(rows, first, count, piece.device)
    by_column = torch.empty(count, width, device=piece.device)
    by_column.scatter_(1, columns, padded.view(count, width))
    signed = by_column * _signs(rows, first, count, piece.device)
    for residue in range(FOLD):
        start = (residue - first) % FOLD
        part = signed[start::FOLD]
        group = (first + start) // FOLD
        partials[group : group + part.shape[0]] += part


def add_reconstruction(rows: Rows, flat: Tensor, offset: int, values: Tensor, scale: float) -> None:
    first, count = _touched(rows.width, offset, flat.numel())
    signed = _signs(rows, first, count, flat.device) * (values * scale)
    by_element = signed.gather(1, _columns(rows, first, count, flat.device)).view(-1)
    flat.copy_(flat.float() + by_element[offset - first * rows.width :][: flat.numel()])


def fold(rows: Tensor) -> Tensor:
    while rows.shape[0] > 1:
        sums = torch.zeros(-(-rows.shape[0] // FOLD), rows.shape[1], device=rows.device)
        for start in range(min(FOLD, rows.shape[0])):
            part = rows[start::FOLD]
            sums[: part.shape[0]] += part
        rows = sums
    return rows[0]


def add_products(
    entries: Entries, directions: Sequence[Direction], piece: Tensor, sums: Tensor
) -> None:
    for k, direction in enumerate(directions):
        products = _values(entries, direction, piece) * piece
        for part in torch.split(products, 32):
            lanes = torch.zeros(LANES, device=piece.device)
            for row in part:
                lanes = lanes + row
            while lanes.numel() > 1:
                half = lanes.numel() // 2
                lanes = lanes[:half] + lanes[half:]
            sums[k] += lanes[0]


def combine(
    entries: Entries, directions: Sequence[Direction], scalars: Tensor, piece: Tensor
) -> None:
    piece.zero_()
    for k, direction in enumerate(directions):
        piece += scalars[k] * _values(entries, direction, piece)


def round_to(target: Tensor, wide: Tensor, noise: Stream, offset: int) -> None:
    first, count = _touched(LANES, offset, wide.numel())
    numbers = fields(noise, 16, LANES, first, count).reshape(-1)[offset - first * LANES :]
    bits = wide.view(torch.int32)
    added = torch.from_numpy(numbers[: wide.numel()].view(np.int32)).to(wide.device)
    kept = torch.where(torch.isfinite(wide), bits + added, bits) & -65536
    target.copy_(kept.view(torch.float32))


def _touched(width: int, offset: int, length: int) -> tuple[int, int]:
    """The first row that elements offset, ..., offset + length - 1 touch, and how many."""
    first = offset // width
    return first, -(-(offset + length) // width) - first


def _columns(rows: Rows, first: int, count: int, device: torch.device) -> Tensor:
    """The coordinate of each element of the rows, int64, shape (count, width)."""
    places = np.broadcast_to(np.arange(rows.width), (count, rows.width))
    if rows.rotation is None:
        return torch.tensor(places, device=device)
    turns = rotations(rows.rotation, rows.width, first, count)
    return torch.tensor((places + turns[:, None]) % rows.width, device=device)


def _signs(rows: Rows, first: int, count: int, device: torch.device) -> Tensor:
    return torch.from_numpy(signs(fields(rows.signs, 1, rows.width, first, count))).to(device)


def _values(entries: Entries, direction: Direction, piece: Tensor) -> Tensor:
    numbers = entries.values(direction.stream, direction.first, piece.shape[0])
    return torch.from_numpy(numbers).to(piece.device)
