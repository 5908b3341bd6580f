"""The readable backend: the specification in torch and NumPy, on any device, without a compiler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fullfed.randomness import Stream
from fullfed.sketch.backends import (
    CODED_BLOCK,
    DirectionRows,
    Message,
    Packing,
    Rows,
    Segment,
    side,
)
from fullfed.sketch.entries import (
    FOLD,
    LANES,
    SIGNS,
    Entries,
    Float32s,
    fields,
    rotations,
    row_signs,
    signs,
)
from fullfed.sketch.segments import narrowed

SCALED = False


def add_projection(rows: Rows, segments: Sequence[Segment], partials: Tensor) -> None:
    for segment in segments:
        _add_projection(rows, segment, partials)


def _add_projection(rows: Rows, segment: Segment, partials: Tensor) -> None:
    change = segment.flat.float()
    if segment.before is not None:
        change = change - segment.before.float()
    width = rows.width
    first, count = _touched(width, segment)
    padded = torch.zeros(count * width, dtype=torch.float32, device=change.device)
    padded[segment.offset - first * width :][: change.numel()] = change * segment.factor
    columns = _columns(rows, first, count, change.device)
    by_column = torch.empty(count, width, dtype=torch.float32, device=change.device)
    by_column.scatter_(1, columns, padded.view(count, width))
    signed = by_column * _signs(rows, first, count, change.device)
    for residue in range(FOLD):
        start = (residue - first) % FOLD
        part = signed[start::FOLD]
        group = (first + start) // FOLD
        partials[group : group + part.shape[0]] += part


def add_reconstruction(rows: Rows, segments: Sequence[Segment], values: Tensor) -> None:
    for segment in segments:
        first, count = _touched(rows.width, segment)
        columns = _columns(rows, first, count, values.device)
        signed = _signs(rows, first, count, values.device) * (values * segment.factor)
        _add(segment, signed.gather(1, columns).view(-1)[segment.offset - first * rows.width :])


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
    entries: Entries, directions: Sequence[DirectionRows], elements: Tensor, sums: Tensor
) -> None:
    for k, direction in enumerate(directions):
        products = _values(entries, direction, elements) * elements
        for part in torch.split(products, 32):
            lanes = torch.zeros(LANES, dtype=torch.float32, device=elements.device)
            for row in part:
                lanes = lanes + row
            while lanes.numel() > 1:
                half = lanes.numel() // 2
                lanes = lanes[:half] + lanes[half:]
            sums[k] += lanes[0]


def add_combination(
    entries: Entries,
    directions: Sequence[DirectionRows],
    scalars: Tensor,
    segments: Sequence[Segment],
) -> None:
    for segment in segments:
        first, count = _touched(LANES, segment)
        total = torch.zeros(count, LANES, dtype=torch.float32, device=scalars.device)
        for k, direction in enumerate(directions):
            shifted = DirectionRows(direction.stream, direction.first + first)
            total += scalars[k] * _values(entries, shifted, total)
        _add(segment, total.view(-1)[segment.offset - first * LANES :] * segment.factor)


def round_to(target: Tensor, wide: Tensor, noise: Stream, offset: int) -> None:
    first, count = _touched(LANES, Segment(wide, offset))
    numbers = fields(noise, 16, LANES, first, count).reshape(-1)[offset - first * LANES :]
    bits = wide.view(torch.int32)
    added = torch.from_numpy(numbers[: wide.numel()].view(np.int32)).to(wide.device)
    kept = torch.where(torch.isfinite(wide), bits + added, bits) >> 16
    target.view(torch.int16).copy_(kept)


def dither(wide: Tensor, noise: Stream, offset: int, dropped: int) -> None:
    first, count = _touched(LANES, Segment(wide, offset))
    numbers = fields(noise, 16, LANES, first, count).reshape(-1)[offset - first * LANES :]
    drawn = np.maximum(numbers[: wide.numel()] >> np.uint32(16 - dropped), np.uint32(1))
    moved = torch.from_numpy(drawn.astype(np.int32) - (1 << (dropped - 1))).to(wide.device)
    bits = wide.view(torch.int32)
    bits.add_(torch.where(torch.isfinite(wide) & (wide != 0), moved, 0))


def _add(segment: Segment, change: Tensor) -> None:
    """The elements plus the change (which may be longer), rounded to their dtype."""
    changed = segment.flat.float() + change[: segment.flat.numel()]
    segment.flat.copy_(narrowed(changed, segment.flat.dtype))


def _touched(width: int, segment: Segment) -> tuple[int, int]:
    """The first row that the elements touch, and how many."""
    first = segment.offset // width
    return first, -(-(segment.offset + segment.flat.numel()) // width) - first


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


def _values(entries: Entries, direction: DirectionRows, like: Tensor) -> Tensor:
    """As many rows of a direction's numbers as ``like`` has, on its device."""
    numbers = entries.values(direction.stream, direction.first, like.shape[0])
    return torch.from_numpy(numbers).to(like.device)


def encode(numbers: Tensor, message: Message) -> None:
    """Docs/shared-randomness.md, section 9, the other way round."""
    packing, bits = message.packing, []
    values = np.zeros(message.padded, dtype=np.float32)
    values[: len(numbers)] = numbers.cpu().numpy()
    for block, first in enumerate(range(0, message.padded, CODED_BLOCK)):
        own = values[first : first + CODED_BLOCK]
        energy = _sum(own[: len(numbers) - first].astype(np.float64) ** 2)
        rotated = _rotated(own, _block_signs(message.stream, block, len(own)))
        numbers_, along = _quantised(rotated, packing, np.sqrt(energy / len(own)))
        message.scales[block] = float(np.float32(energy / along)) if along > 0 else 0.0
        bits.append(_bits(numbers_, packing.bits))
    message.codes.copy_(torch.from_numpy(np.packbits(np.concatenate(bits))))


def decode(message: Message, numbers: Tensor) -> None:
    """Docs/shared-randomness.md, section 9."""
    packing, padded = message.packing, message.padded
    count = padded // packing.group * packing.bits
    bits = np.unpackbits(message.codes.cpu().numpy(), count=count).reshape(-1, packing.bits)
    codes = bits.astype(np.int64) @ (1 << np.arange(packing.bits))
    scales = message.scales.cpu().numpy()
    for block, first in enumerate(range(0, padded, CODED_BLOCK)):
        own = codes[first // packing.group : (first + CODED_BLOCK) // packing.group]
        levels = _levels(own, packing, scales[block])
        values = _rotated_back(levels, _block_signs(message.stream, block, len(levels)))
        numbers[first : first + len(values)] = torch.from_numpy(values)


def _bits(codes: NDArray[np.int64], count: int) -> NDArray[np.uint8]:
    """The ``count`` bits of each code, lowest first."""
    return (codes[:, None] >> np.arange(count) & 1).astype(np.uint8).ravel()


def _quantised(
    x: Float32s, packing: Packing, root_mean_square: float
) -> tuple[NDArray[np.int64], float]:
    """The codes of a rotated block, and its product with the levels they stand for, in float64."""
    if packing.levels:
        levels = np.array(packing.levels, dtype=np.float32)
        middles = ((levels[:-1] + levels[1:]) / np.float32(2)).astype(np.float64)
        bounds = (middles * root_mean_square).astype(np.float32)
        codes = (x[:, None] > bounds).sum(axis=1)
        products = x.astype(np.float64) * levels[codes].astype(np.float64)
        return codes, float(np.cumsum(products)[-1])
    groups = x.reshape(-1, packing.group)
    places = np.abs(groups).argmax(axis=1)
    largest = groups[np.arange(len(groups)), places]
    sizes = np.abs(largest).astype(np.float64)
    codes = places + packing.group * (largest > 0)
    return codes, _sum(sizes) if packing.group == 1 else float(np.cumsum(sizes)[-1])


def _sum(x: NDArray[np.float64]) -> float:
    """In eight sums side by side, the last len(x) mod 8 in the first of them."""
    whole = len(x) - len(x) % 8
    sums = np.zeros(8)
    if whole:
        sums = np.cumsum(x[:whole].reshape(-1, 8), axis=0)[-1]
    sums[0] = np.cumsum([sums[0], *x[whole:]])[-1]
    return float(np.cumsum(sums)[-1])


def _levels(codes: NDArray[np.int64], packing: Packing, scale: np.float32) -> Float32s:
    """What codes stand for before they are rotated back."""
    if packing.levels:
        values: Float32s = np.array(packing.levels, dtype=np.float32)[codes] * scale
        return values
    groups = np.zeros((len(codes), packing.group), dtype=np.float32)
    signed = np.where(codes >= packing.group, scale, -scale)
    groups[np.arange(len(codes)), codes % packing.group] = signed
    return groups.ravel()


def _block_signs(stream: Stream, block: int, length: int) -> Float32s:
    """z of a block, three rows of ``length``: elements 3 * 65,536 * block, ... of a direction."""
    rows = SIGNS.values(stream, 3 * CODED_BLOCK // LANES * block, -(-3 * length // LANES))
    return rows.ravel()[: 3 * length].reshape(3, length)


def _rotated(x: Float32s, z: Float32s) -> Float32s:
    size = side(len(x))
    x = _transformed((x * z[0]).reshape(-1, size)).ravel() * z[1]
    x = _transformed(x.reshape(size, -1).T).T.ravel() * z[2]
    return _transformed(x.reshape(-1, size)).ravel()


def _rotated_back(x: Float32s, z: Float32s) -> Float32s:
    size = side(len(x))
    x = _transformed(x.reshape(-1, size)).ravel() * z[2]
    x = _transformed(x.reshape(size, -1).T).T.ravel() * z[1]
    back: Float32s = _transformed(x.reshape(-1, size)).ravel() * z[0]
    return back


def _transformed(rows: Float32s) -> Float32s:
    """The Walsh-Hadamard transform of each row, over the root of its length."""
    count, size = rows.shape
    half = 1
    while half < size:
        low, high = np.moveaxis(rows.reshape(count, -1, 2, half), 2, 0)
        rows = np.stack([low + high, low - high], axis=2).reshape(count, size)
        half *= 2
    transformed: Float32s = rows * np.float32(size**-0.5)
    return transformed
