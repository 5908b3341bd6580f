"""The Triton backend: CUDA tensors. With TRITON_INTERPRET=1 it also runs, slowly, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
import triton
from torch import Tensor

from fullfed.sketch import dense_cuda, sign_cuda
from fullfed.sketch.backends import Direction, Rows
from fullfed.sketch.entries import Entries
from fullfed.sketch.generator import Stream
from fullfed.sketch.layout import FOLD, LANES

BLOCK = 1024  # columns of a program at most
EXACT = {"enable_fp_fusion": False}  # a fused multiply-add would round once instead of twice


def add_projection(
    rows: Rows,
    flat: Tensor,
    before: Tensor | None,
    weight: float,
    offset: int,
    partials: Tensor,
) -> None:
    grid, first, block = _grid(rows, offset, flat.numel())
    old = flat if before is None else before
    with _device_of(flat):
        sign_cuda.project[grid](
            _stored(flat),
            _stored(old),
            weight,
            offset,
            flat.numel(),
            partials,
            rows.width,
            first,
            _keys([rows.signs, rows.rotation or rows.signs], flat.device),
            ROTATED=rows.rotation is not None,
            HAS_BEFORE=before is not None,
            AFTER_BFLOAT=flat.dtype == torch.bfloat16,
            BEFORE_BFLOAT=old.dtype == torch.bfloat16,
            BLOCK=block,
            **EXACT,
        )


def add_reconstruction(rows: Rows, flat: Tensor, offset: int, values: Tensor, scale: float) -> None:
    grid, first, block = _grid(rows, offset, flat.numel())
    with _device_of(flat):
        sign_cuda.reconstruct[grid](
            _stored(flat),
            offset,
            flat.numel(),
            values,
            scale,
            rows.width,
            first,
            _keys([rows.signs, rows.rotation or rows.signs], flat.device),
            ROTATED=rows.rotation is not None,
            BFLOAT=flat.dtype == torch.bfloat16,
            HALF=flat.dtype == torch.float16,
            BLOCK=block,
            **EXACT,
        )


def fold(rows: Tensor) -> Tensor:
    while rows.shape[0] > 1:
        count, width = rows.shape
        sums = torch.zeros(-(-count // FOLD), width, device=rows.device)
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
    by_part = torch.empty(parts, count, device=piece.device)
    keys, firsts = _packed(directions, piece.device)
    series, terms = _series(entries, piece.device)
    with _device_of(piece):
        dense_cuda.products[(parts, count)](
            piece, by_part, keys, firsts, series, count, entries.bits, terms, num_warps=1, **EXACT
        )
        dense_cuda.add_in_order[(1, -(-count // 128))](sums, by_part, parts, count, 128, **EXACT)


def combine(
    entries: Entries, directions: Sequence[Direction], scalars: Tensor, piece: Tensor
) -> None:
    run = min(entries.parts, 32)
    skipped = directions[0].first % entries.parts if directions else 0
    keys, firsts = _packed(directions, piece.device)
    series, terms = _series(entries, piece.device)
    with _device_of(piece):
        dense_cuda.combine[(-(-(piece.shape[0] + skipped) // run),)](
            piece,
            piece.shape[0],
            keys,
            firsts,
            scalars,
            series,
            len(directions),
            skipped,
            entries.bits,
            terms,
            run,
            **EXACT,
        )


def round_to(target: Tensor, wide: Tensor, noise: Stream, offset: int) -> None:
    programs = -(-(offset + wide.numel()) // (8 * LANES)) - offset // (8 * LANES)
    keys = _keys([noise], wide.device)
    with _device_of(wide):
        dense_cuda.round_rows[(programs,)](_stored(target), wide, keys, offset, wide.numel())


def _device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Launch where the tensor is, whichever GPU is current."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


def _grid(rows: Rows, offset: int, length: int) -> tuple[tuple[int, int], int, int]:
    """Programs for groups and blocks of columns, the first group, and the block's size."""
    block = min(BLOCK, max(32, triton.next_power_of_2(rows.width)))
    first = offset // (rows.width * FOLD)
    groups = -(-(offset + length) // (rows.width * FOLD)) - first
    return (groups, -(-rows.width // block)), first, block


def _stored(flat: Tensor) -> Tensor:
    return flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat


def _keys(streams: Sequence[Stream], device: torch.device) -> Tensor:
    numbers = [[*stream.key, stream.round, stream.owner] for stream in streams]
    return torch.tensor(numbers or [[0] * 4], dtype=torch.int64, device=device)


def _packed(directions: Sequence[Direction], device: torch.device) -> tuple[Tensor, Tensor]:
    firsts = [direction.first for direction in directions] or [0]
    keys = _keys([direction.stream for direction in directions], device)
    return keys, torch.tensor(firsts, dtype=torch.int64, device=device)


def _series(entries: Entries, device: torch.device) -> tuple[Tensor, int]:
    series = entries.series or (0.0,)
    return torch.tensor(series, dtype=torch.float32, device=device), len(series)
