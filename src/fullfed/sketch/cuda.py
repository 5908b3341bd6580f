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
from fullfed.sketch import cuda_codes, cuda_kernels, cuda_rounding
from fullfed.sketch.backends import (
    CODED_BLOCK,
    DirectionRows,
    Message,
    Packing,
    Rows,
    Segment,
    side,
)
from fullfed.sketch.entries import FOLD, LANES, Entries

SCALED = False
PROGRAM = 1024  # outputs of the signs that one program has, at most
TRANSFORMS = 16  # that one program has
BATCH = 256  # blocks that are coded at once: 240 MB of memory
STORED = {torch.float32: tl.float32, torch.bfloat16: tl.int16, torch.float16: tl.float16}
EXACT = {"enable_fp_fusion": False}  # a fused multiply-add would round once instead of twice


def add_projection(rows: Rows, segments: Sequence[Segment], partials: Tensor) -> None:
    for alike in _alike(segments):
        grid, first, block = _grid(rows, alike)
        before = alike[0].before
        with _device_of(partials):
            cuda_kernels.project[grid](
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
                PROGRAM=block,
                **EXACT,
            )


def add_reconstruction(rows: Rows, segments: Sequence[Segment], values: Tensor) -> None:
    for alike in _alike(segments):
        grid, first, block = _grid(rows, alike)
        with _device_of(values):
            cuda_kernels.reconstruct[grid](
                *_table(alike),
                values,
                rows.width,
                rows.depth,
                rows.counters,
                first,
                _keys([rows.signs, rows.rotation or rows.signs], values.device),
                ROTATED=rows.rotation is not None,
                STORED=STORED[alike[0].flat.dtype],
                PROGRAM=block,
                **EXACT,
            )


def fold(rows: Tensor) -> Tensor:
    while rows.shape[0] > 1:
        count, width = rows.shape
        sums = torch.zeros(-(-count // FOLD), width, dtype=torch.float32, device=rows.device)
        with _device_of(rows):
            cuda_kernels.add_in_order[(sums.shape[0], -(-width // 128))](
                sums, rows, count, width, 128, **EXACT
            )
        rows = sums
    return rows[0]


def add_products(
    entries: Entries, directions: Sequence[DirectionRows], elements: Tensor, sums: Tensor
) -> None:
    parts, count = elements.shape[0] // 32, len(directions)
    by_part = torch.empty(parts, count, dtype=torch.float32, device=elements.device)
    keys, firsts = _packed(directions, elements.device)
    series, terms = _series(entries, elements.device)
    with _device_of(elements):
        cuda_kernels.products[(parts, count)](
            elements,
            by_part,
            keys,
            firsts,
            series,
            count,
            entries.bits,
            terms,
            num_warps=1,
            **EXACT,
        )
        cuda_kernels.add_in_order[(1, -(-count // 128))](sums, by_part, parts, count, 128, **EXACT)


def add_combination(
    entries: Entries,
    directions: Sequence[DirectionRows],
    scalars: Tensor,
    segments: Sequence[Segment],
) -> None:
    run = min(entries.parts, 32)
    keys, firsts = _packed(directions, scalars.device)
    series, terms = _series(entries, scalars.device)
    for alike in _alike(segments):
        first, end = alike[0].offset // (run * LANES), _end(alike[-1])
        with _device_of(scalars):
            cuda_kernels.add_combination[(-(-end // (run * LANES)) - first,)](
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


def dither(wide: Tensor, noise: Stream, offset: int, dropped: int) -> None:
    programs = -(-(offset + wide.numel()) // (8 * LANES)) - offset // (8 * LANES)
    keys = _keys([noise], wide.device)
    with _device_of(wide):
        cuda_rounding.dither_rows[(programs,)](wide, keys, offset, wide.numel(), DROPPED=dropped)


def round_to(target: Tensor, wide: Tensor, noise: Stream, offset: int) -> None:
    programs = -(-(offset + wide.numel()) // (8 * LANES)) - offset // (8 * LANES)
    keys = _keys([noise], wide.device)
    stored = target.view(torch.int16)
    with _device_of(wide):
        cuda_rounding.round_rows[(programs,)](stored, wide, keys, offset, wide.numel())


def encode(numbers: Tensor, message: Message) -> None:
    packing, device = message.packing, numbers.device
    for first, blocks, length in _batches(message.padded):
        begin, total = first * CODED_BLOCK, blocks * length
        x = torch.zeros(total, dtype=torch.float32, device=device)
        own = numbers[begin : begin + total]
        x[: len(own)] = own
        with _device_of(numbers):
            energies = _sums(x, length, len(own), blocks, squared=True)
            words = _sign_words(message.stream, first, blocks, device)
            for part in range(3):
                _transform(x, words, length, part, signs_first=True)
            codes, terms = _quantised(x, packing, length, energies)
            count, lanes = length // packing.group, 8 if packing.bits == 1 else 1
            along = _sums(terms, count, len(terms), blocks, lanes=lanes)
            packed = message.codes[begin // packing.group * packing.bits // 8 :]
            size = -(-len(codes) * packing.bits // 8)
            cuda_codes.pack[(-(-size // PROGRAM),)](
                codes, packed, len(codes), size, packing.bits, PROGRAM
            )
        scales = torch.where(along > 0, energies / along, 0.0)
        message.scales[first : first + blocks] = scales.float()


def decode(message: Message, numbers: Tensor) -> None:
    bits, group, levels = message.packing
    for first, blocks, length in _batches(message.padded):
        begin = first * CODED_BLOCK
        x, scales = numbers[begin : begin + blocks * length], message.scales[first:]
        packed = message.codes[begin // group * bits // 8 :]
        with _device_of(numbers):
            if levels:
                known = torch.tensor(levels, dtype=torch.float32, device=numbers.device)
                cuda_codes.unpack_levels[(-(-length // PROGRAM), blocks)](
                    packed, known, scales, x, length, bits, PROGRAM, **EXACT
                )
            else:
                at_once = max(1, PROGRAM // group)
                cuda_codes.unpack_groups[(-(-length // (group * at_once)), blocks)](
                    packed, scales, x, length, bits, group, at_once, **EXACT
                )
            words = _sign_words(message.stream, first, blocks, numbers.device)
            for part in (2, 1, 0):
                _transform(x, words, length, part, signs_first=False)


def _batches(padded: int) -> Iterator[tuple[int, int, int]]:
    """The first block, how many, and their length: all of 65,536 but the last, if it is shorter."""
    whole, rest = divmod(padded, CODED_BLOCK)
    for first in range(0, whole, BATCH):
        yield first, min(BATCH, whole - first), CODED_BLOCK
    if rest:
        yield whole, 1, rest


def _sign_words(stream: Stream, first: int, blocks: int, device: torch.device) -> Tensor:
    """The words of cuda_codes.sign_words."""
    words = torch.empty(blocks, 12, 4, 128, dtype=torch.int32, device=device)
    cuda_codes.sign_words[(blocks, 12)](words, _keys([stream], device), first, num_warps=4)
    return words


def _transform(x: Tensor, words: Tensor, length: int, part: int, *, signs_first: bool) -> None:
    """One of the three rounds of transforms of blocks, in place."""
    size = side(length)
    cuda_codes.transform[(-(-length // (size * TRANSFORMS)), len(words))](
        x,
        words,
        length,
        part,
        size**-0.5,
        DISTANT=part == 1,
        SIGNS_FIRST=signs_first,
        LEVELS=size.bit_length() - 1,
        PROGRAM=TRANSFORMS,
        num_warps=8,
        **EXACT,
    )


def _sums(
    terms: Tensor, length: int, total: int, blocks: int, *, squared: bool = False, lanes: int = 8
) -> Tensor:
    """Of each block's terms, float64, shape (blocks,)."""
    sums = torch.empty(blocks, dtype=torch.float64, device=terms.device)
    cuda_codes.add_in_order[(blocks,)](
        terms, sums, length, total, squared, lanes, num_warps=1, **EXACT
    )
    return sums


def _quantised(x: Tensor, packing: Packing, length: int, energies: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of rotated blocks, int16, and the terms of their products with the levels, float64."""
    count = len(x) // packing.group
    codes = torch.empty(count, dtype=torch.int16, device=x.device)
    terms = torch.empty(count, dtype=torch.float64, device=x.device)
    if not packing.levels:
        at_once = max(1, PROGRAM // packing.group)
        cuda_codes.largest_of_groups[(-(-count // at_once),)](
            x, codes, terms, count, packing.group, at_once, **EXACT
        )
        return codes, terms
    levels = torch.tensor(packing.levels, dtype=torch.float32, device=x.device)
    middles = ((levels[:-1] + levels[1:]) / 2).double()
    # By a tensor: by a Python number CUDA divides with its rounded reciprocal.
    mean_squares = energies / energies.new_tensor(length)
    bounds = (middles * mean_squares.sqrt()[:, None]).float()
    grid = -(-length // PROGRAM), len(energies)
    cuda_codes.nearest_levels[grid](
        x, bounds, levels, codes, terms, length, len(middles), PROGRAM, **EXACT
    )
    return codes, terms


def _device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Launch where the tensor is, whichever GPU is current."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


def _alike(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Segments of the same dtypes: one launch, in the order that sums are in."""

    def dtypes(segment: Segment) -> tuple[torch.dtype, torch.dtype | None]:
        return segment.flat.dtype, None if segment.before is None else segment.before.dtype

    for _, alike in itertools.groupby(segments, dtypes):
        yield list(alike)


def _table(segments: Sequence[Segment]) -> tuple[Tensor, Tensor, int]:
    """The table of cuda_kernels, the segments' factors, and how many they are."""
    numbers = [
        [segment.flat.data_ptr() for segment in segments],
        [0 if segment.before is None else segment.before.data_ptr() for segment in segments],
        [segment.offset for segment in segments],
        [_end(segment) for segment in segments],
    ]
    device = segments[0].flat.device
    factors = torch.tensor([p.factor for p in segments], dtype=torch.float32, device=device)
    return torch.tensor(numbers, dtype=torch.int64, device=device), factors, len(segments)


def _end(segment: Segment) -> int:
    return segment.offset + segment.flat.numel()


def _grid(rows: Rows, segments: Sequence[Segment]) -> tuple[tuple[int, int], int, int]:
    """Programs for groups and blocks of counters, the first group, and the block's size."""
    block = min(PROGRAM, max(32, triton.next_power_of_2(rows.counters)))
    first = segments[0].offset // (rows.width * FOLD)
    groups = -(-_end(segments[-1]) // (rows.width * FOLD)) - first
    return (groups, -(-rows.counters // block)), first, block


def _keys(streams: Sequence[Stream], device: torch.device) -> Tensor:
    numbers = [[*stream.key, stream.round, stream.owner] for stream in streams]
    return torch.tensor(numbers or [[0] * 4], dtype=torch.int64, device=device)


def _packed(directions: Sequence[DirectionRows], device: torch.device) -> tuple[Tensor, Tensor]:
    firsts = [direction.first for direction in directions] or [0]
    keys = _keys([direction.stream for direction in directions], device)
    return keys, torch.tensor(firsts, dtype=torch.int64, device=device)


def _series(entries: Entries, device: torch.device) -> tuple[Tensor, int]:
    series = torch.tensor(entries.series or (0.0,), dtype=torch.float32, device=device)
    return series, len(entries.series)
