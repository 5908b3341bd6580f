"""The Triton backend: CUDA tensors. With TRITON_INTERPRET=1 it also runs, slowly, on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
import triton
import triton.language as tl
from torch import Tensor

from fullfed.randomness import Stream
from fullfed.sketch import dense_cuda, sign_cuda
from fullfed.sketch.backends import Direction, Piece, Rows
from fullfed.sketch.coded import Coded, decoded
from fullfed.sketch.entries import Entries
from fullfed.sketch.layout import FOLD, LANES

BLOCK = 1024  # counters of a program at most
STORED = {torch.float32: tl.float32, torch.bfloat16: tl.int16, torch.float16: tl.float16}
EXACT = {"enable_fp_fusion": False}  # a fused multiply-add would round once instead of twice


def add_projection(rows: Rows, pieces: Sequence[Piece], partials: Tensor) -> None:
    for alike in _alike(pieces):
        grid, first, block = _grid(rows, alike)
        before = alike[0].before
        with _device_of(partials):
            sign_cuda.project[grid](
                *_table(alike),
                partials,
                rows.width,
                rows.depth,
                rows.counters,
                first,
                _keys([rows.signs, rows.rotation or rows.signs], partials.device),
                ROTATED=rows.rotation is not None,
                HAS_BEFORE=before is not None,
                AFTER=STORED[alike[0].flat.dtype],
                BEFORE=tl.float32 if before is None else STORED[before.dtype],
                BLOCK=block,
                **EXACT,
            )


def add_reconstruction(rows: Rows, pieces: Sequence[Piece], values: Tensor | Coded) -> None:
    values = decoded(values)
    for alike in _alike(pieces):
        grid, first, block = _grid(rows, alike)
        with _device_of(values):
            sign_cuda.reconstruct[grid](
                *_table(alike),
                values,
                rows.width,
                rows.depth,
                rows.counters,
                first,
                _keys([rows.signs, rows.rotation or rows.signs], values.device),
                ROTATED=rows.rotation is not None,
                STORED=STORED[alike[0].flat.dtype],
                BLOCK=block,
                **EXACT,
            )


def fold(rows: Tensor) -> Tensor:
    while rows.shape[0] > 1:
        count, width = rows.shape
        sums = torch.zeros(-(-count // FOLD), width, dtype=torch.float32, device=rows.device)
        with _device_of(rows):
            dense_cuda.add_in_order[(sums.shape[0], -(-width // 128))](
                sums, rows, count, width, 128, **EXACT
            )
        rows = sums
    return rows[0]


def add_products(
    entries: Entries, directions: Sequence[Direction], piece: Tensor, sums: Tensor
) -> None:
    parts, count = piece.shape[0] // 32, len(directions)
    by_part = torch.empty(parts, count, dtype=torch.float32, device=piece.device)
    keys, firsts = _packed(directions, piece.device)
    series, terms = _series(entries, piece.device)
    with _device_of(piece):
        dense_cuda.products[(parts, count)](
            piece, by_part, keys, firsts, series, count, entries.bits, terms, num_warps=1, **EXACT
        )
        dense_cuda.add_in_order[(1, -(-count // 128))](sums, by_part, parts, count, 128, **EXACT)


def add_combination(
    entries: Entries, directions: Sequence[Direction], scalars: Tensor, pieces: Sequence[Piece]
) -> None:
    run = min(entries.parts, 32)
    keys, firsts = _packed(directions, scalars.device)
    series, terms = _series(entries, scalars.device)
    for alike in _alike(pieces):
        first, end = alike[0].offset // (run * LANES), _end(alike[-1])
        with _device_of(scalars):
            dense_cuda.add_combination[(-(-end // (run * LANES)) - first,)](
                *_table(alike),
                first,
                keys,
                firsts,
                scalars,
                series,
                len(directions),
                entries.bits,
                terms,
                run,
                STORED[alike[0].flat.dtype],
                **EXACT,
            )


def round_to(target: Tensor, wide: Tensor, noise: Stream, offset: int) -> None:
    programs = -(-(offset + wide.numel()) // (8 * LANES)) - offset // (8 * LANES)
    keys = _keys([noise], wide.device)
    stored = target.view(torch.int16)
    with _device_of(wide):
        dense_cuda.round_rows[(programs,)](stored, wide, keys, offset, wide.numel())


def _device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Launch where the tensor is, whichever GPU is current."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


def _alike(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Consecutive pieces of the same dtypes: one launch, in the order that sums are in."""

    def dtypes(piece: Piece) -> tuple[torch.dtype, torch.dtype | None]:
        return piece.flat.dtype, None if piece.before is None else piece.before.dtype

    for _, alike in itertools.groupby(pieces, dtypes):
        yield list(alike)


def _table(pieces: Sequence[Piece]) -> tuple[Tensor, Tensor, int]:
    """The table of pieces_cuda, the pieces' factors, and how many they are."""
    numbers = [
        [piece.flat.data_ptr() for piece in pieces],
        [0 if piece.before is None else piece.before.data_ptr() for piece in pieces],
        [piece.offset for piece in pieces],
        [_end(piece) for piece in pieces],
    ]
    device = pieces[0].flat.device
    factors = torch.tensor([p.factor for p in pieces], dtype=torch.float32, device=device)
    return torch.tensor(numbers, dtype=torch.int64, device=device), factors, len(pieces)


def _end(piece: Piece) -> int:
    return piece.offset + piece.flat.numel()


def _grid(rows: Rows, pieces: Sequence[Piece]) -> tuple[tuple[int, int], int, int]:
    """Programs for groups and blocks of counters, the first group, and the block's size."""
    block = min(BLOCK, max(32, triton.next_power_of_2(rows.counters)))
    first = pieces[0].offset // (rows.width * FOLD)
    groups = -(-_end(pieces[-1]) // (rows.width * FOLD)) - first
    return (groups, -(-rows.counters // block)), first, block


def _keys(streams: Sequence[Stream], device: torch.device) -> Tensor:
    numbers = [[*stream.key, stream.round, stream.owner] for stream in streams]
    return torch.tensor(numbers or [[0] * 4], dtype=torch.int64, device=device)


def _packed(directions: Sequence[Direction], device: torch.device) -> tuple[Tensor, Tensor]:
    firsts = [direction.first for direction in directions] or [0]
    keys = _keys([direction.stream for direction in directions], device)
    return keys, torch.tensor(firsts, dtype=torch.int64, device=device)


def _series(entries: Entries, device: torch.device) -> tuple[Tensor, int]:
    series = torch.tensor(entries.series or (0.0,), dtype=torch.float32, device=device)
    return series, len(entries.series)
