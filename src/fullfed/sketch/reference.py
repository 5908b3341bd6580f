"""The readable backend: the specification in torch and NumPy, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fullfed.randomness import Stream
from fullfed.sketch.backends import Direction, Piece, Rows
from fullfed.sketch.coded import Coded, decoded
from fullfed.sketch.entries import Entries, signs
from fullfed.sketch.layout import FOLD, LANES, fields, rotations, row_signs


def add_projection(rows: Rows, pieces: Sequence[Piece], partials: Tensor) -> None:
    for piece in pieces:
        _add_projection(rows, piece, partials)


def _add_projection(rows: Rows, piece: Piece, partials: Tensor) -> None:
    change = piece.flat.float()
    if piece.before is not None:
        change = change - piece.before.float()
    width = rows.width
    first, count = _touched(width, piece)
    padded = torch.zeros(count * width, dtype=torch.float32, device=change.device)
    padded[piece.offset - first * width :][: change.numel()] = change * piece.factor
    columns = _columns(rows, first, count, change.device)
    by_column = torch.empty(count, width, dtype=torch.float32, device=change.device)
    by_column.scatter_(1, columns, padded.view(count, width))
    signed = by_column * _signs(rows, first, count, change.device)
    for residue in range(FOLD):
        start = (residue - first) % FOLD
        part = signed[start::FOLD]
        group = (first + start) // FOLD
        partials[group : group + part.shape[0]] += part


def add_reconstruction(rows: Rows, pieces: Sequence[Piece], values: Tensor | Coded) -> None:
    values = decoded(values)
    for piece in pieces:
        first, count = _touched(rows.width, piece)
        columns = _columns(rows, first, count, values.device)
        signed = _signs(rows, first, count, values.device) * (values * piece.factor)
        _add(piece, signed.gather(1, columns).view(-1)[piece.offset - first * rows.width :])


def fold(rows: Tensor) -> Tensor:
    while rows.shape[0] > 1:
        sums = torch.zeros(
            -(-rows.shape[0] // FOLD), rows.shape[1], dtype=torch.float32, device=rows.device
        )
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
            lanes = torch.zeros(LANES, dtype=torch.float32, device=piece.device)
            for row in part:
                lanes = lanes + row
            while lanes.numel() > 1:
                half = lanes.numel() // 2
                lanes = lanes[:half] + lanes[half:]
            sums[k] += lanes[0]


def add_combination(
    entries: Entries, directions: Sequence[Direction], scalars: Tensor, pieces: Sequence[Piece]
) -> None:
    for piece in pieces:
        first, count = _touched(LANES, piece)
        total = torch.zeros(count, LANES, dtype=torch.float32, device=scalars.device)
        for k, direction in enumerate(directions):
            shifted = Direction(direction.stream, direction.first + first)
            total += scalars[k] * _values(entries, shifted, total)
        _add(piece, total.view(-1)[piece.offset - first * LANES :] * piece.factor)


def round_to(target: Tensor, wide: Tensor, noise: Stream, offset: int) -> None:
    first, count = _touched(LANES, Piece(wide, offset))
    numbers = fields(noise, 16, LANES, first, count).reshape(-1)[offset - first * LANES :]
    bits = wide.view(torch.int32)
    added = torch.from_numpy(numbers[: wide.numel()].view(np.int32)).to(wide.device)
    kept = torch.where(torch.isfinite(wide), bits + added, bits) & -65536
    target.copy_(kept.view(torch.float32))


def _add(piece: Piece, change: Tensor) -> None:
    """The elements plus the change (which may be longer), rounded to their dtype."""
    piece.flat.copy_(piece.flat.float() + change[: piece.flat.numel()])


def _touched(width: int, piece: Piece) -> tuple[int, int]:
    """The first row that the elements touch, and how many."""
    first = piece.offset // width
    return first, -(-(piece.offset + piece.flat.numel()) // width) - first


def _columns(rows: Rows, first: int, count: int, device: torch.device) -> Tensor:
    """The coordinate of each element of the rows, int64, shape (count, width)."""
    places = np.broadcast_to(np.arange(rows.width), (count, rows.width))
    if rows.rotation is None:
        return torch.tensor(places, device=device)
    turns = rotations(rows.rotation, rows.width, first, count)
    return torch.tensor((places + turns[:, None]) % rows.width, device=device)


def _signs(rows: Rows, first: int, count: int, device: torch.device) -> Tensor:
    bits = row_signs(rows.signs, rows.width, rows.depth, rows.counters, first, count)
    return torch.from_numpy(signs(bits)).to(device)


def _values(entries: Entries, direction: Direction, piece: Tensor) -> Tensor:
    numbers = entries.values(direction.stream, direction.first, piece.shape[0])
    return torch.from_numpy(numbers).to(piece.device)
