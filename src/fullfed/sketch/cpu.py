"""The numba backend: CPU tensors, as many threads as torch uses."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fullfed.randomness import Stream
from fullfed.sketch import dense_cpu, sign_cpu
from fullfed.sketch.backends import Direction, Piece, Rows
from fullfed.sketch.blocks import BLOCK
from fullfed.sketch.coded import Coded, decoded
from fullfed.sketch.entries import Entries
from fullfed.sketch.layout import FOLD, LANES
from fullfed.sketch.packed import Packed
from fullfed.sketch.pieces_cpu import Table, stored, tables
from fullfed.sketch.threads_cpu import split

RUN = 32768  # columns at a time: their signs and sums stay in the second-level cache
LONG = 8192  # rows from this length on are projected four at a time
SHORTEST = 1024  # rows are not cut into shorter runs than this
CHUNK = 32 * LANES  # elements whose sum of directions is held at once


def add_projection(rows: Rows, pieces: Sequence[Piece], partials: Tensor) -> None:
    for table in tables(pieces):
        first, groups = _groups(rows, table)
        runs, run = _runs(rows, groups)
        split(
            sign_cpu.project,
            groups * runs,
            table.length,
            table,
            partials.numpy()[first : first + groups],
            LONG,
            first,
            rows.depth,
            rows.counters,
            runs,
            run,
            *_keys(rows.signs, rows.rotation),
        )


def add_reconstruction(rows: Rows, pieces: Sequence[Piece], values: Tensor | Coded) -> None:
    for table in tables(pieces):
        first, groups = _groups(rows, table)
        source: Packed | NDArray[np.float32]
        shares = _shares(rows, table, groups) if isinstance(values, Coded) else None
        if isinstance(values, Coded) and shares:
            runs, run, source = -(-rows.counters // BLOCK), BLOCK, values.packed()
        else:
            (runs, run), shares, source = _runs(rows, groups), 1, decoded(values).numpy()
        split(
            sign_cpu.reconstruct,
            groups * runs * shares,
            table.length,
            table,
            source,
            shares,
            rows.width,
            first,
            rows.depth,
            rows.counters,
            runs,
            run,
            *_keys(rows.signs, rows.rotation),
        )


def _shares(rows: Rows, table: Table, groups: int) -> int | None:
    """How the kernel should decode: a block for each run of counters and their columns, each run
    dealt in so many shares, which make the same signs again. None if it should not.

    It should if that is less work than reconstructing, and leaves no thread without work for more
    than a sixth of the time.
    """
    if table.length < rows.width or rows.counters < BLOCK:
        return None
    runs, threads = groups * -(-rows.counters // BLOCK), torch.get_num_threads()
    for shares in (1, 2, 4):
        if 5 * threads * -(-runs * shares // threads) <= 6 * runs * shares:
            return shares if shares * rows.depth <= FOLD else None
    return None


def fold(rows: Tensor) -> Tensor:
    while rows.shape[0] > 1:
        sums = torch.empty(-(-rows.shape[0] // FOLD), rows.shape[1], dtype=torch.float32)
        split(sign_cpu.fold, rows.shape[1], rows.numel(), rows.numpy(), sums.numpy())
        rows = sums
    return rows[0]


def _groups(rows: Rows, table: Table) -> tuple[int, int]:
    """The first group of rows that the elements touch, and how many."""
    first = table.first // (rows.width * FOLD)
    return first, -(-(table.first + table.length) // (rows.width * FOLD)) - first


def _runs(rows: Rows, groups: int) -> tuple[int, int]:
    """How many runs a group's counters are cut into, and their length."""
    wanted = -(-4 * torch.get_num_threads() // groups)
    runs = max(-(-rows.counters // RUN), min(wanted, rows.counters // SHORTEST))
    return runs, -(-rows.counters // runs)


@functools.lru_cache(maxsize=8192)
def _keys(signs: Stream, rotation: Stream | None) -> tuple[NDArray[np.uint64], bool]:
    return np.stack([key(signs), key(rotation or signs)]), rotation is not None


def add_products(
    entries: Entries, directions: Sequence[Direction], piece: Tensor, sums: Tensor
) -> None:
    split(
        dense_cpu.products,
        len(directions),
        len(directions) * piece.numel(),
        piece.numpy(),
        *_packed(entries, directions),
        sums.numpy(),
    )


def add_combination(
    entries: Entries, directions: Sequence[Direction], scalars: Tensor, pieces: Sequence[Piece]
) -> None:
    kind, keys, firsts = _packed(entries, directions)
    for flat, offset, factor, _ in pieces:
        first = offset // CHUNK
        chunks = -(-(offset + flat.numel()) // CHUNK) - first
        split(
            dense_cpu.add_combination,
            chunks,
            len(directions) * flat.numel(),
            stored(flat),
            offset,
            first,
            kind,
            keys,
            firsts,
            scalars.numpy(),
            np.float32(factor),
        )


def round_to(target: Tensor, wide: Tensor, noise: Stream, offset: int) -> None:
    rows = -(-(offset + wide.numel()) // LANES) - offset // LANES
    keys = key(noise)[None]
    split(dense_cpu.round_rows, rows, wide.numel(), stored(target), wide.numpy(), keys, offset)


def _packed(entries: Entries, directions: Sequence[Direction]) -> tuple[Any, ...]:
    """Kind, keys and first rows as the kernels take them."""
    return (
        dense_cpu.kind_of(entries),
        np.array([key(d.stream) for d in directions], dtype=np.uint64).reshape(-1, 4),
        np.array([direction.first for direction in directions], dtype=np.int64),
    )


@functools.lru_cache(maxsize=8192)
def key(stream: Stream) -> NDArray[np.uint64]:
    """As kernels take it, shape (4,)."""
    return np.array([*stream.key, stream.round, stream.owner], dtype=np.uint64)
