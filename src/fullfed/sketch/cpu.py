"""The numba backend: CPU tensors, on as many threads as torch uses."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fullfed.randomness import Stream
from fullfed.sketch import cpu_codes, cpu_dense, cpu_numbers, cpu_sign
from fullfed.sketch.backends import DirectionRows, Factors, Message, Rows, Segment
from fullfed.sketch.cpu_codes import CodedBlocks
from fullfed.sketch.cpu_dense import Directions
from fullfed.sketch.cpu_sign import Layout
from fullfed.sketch.cpu_tables import HOLE, Scaling, Table
from fullfed.sketch.entries import FOLD, LANES, Entries

SCALED = True
SMALL = 1 << 16  # numbers made; below this a second thread costs more than it gains
RUN = 32768  # outputs of the signs at a time: these and the columns' sums stay in the cache
LONG = 8192  # rows from this length on are projected four at a time
SHORTEST = 1024  # outputs are not cut into shorter runs than this
CHUNK = 32 * LANES  # elements whose sum of directions is held at once


def add_projection(rows: Rows, segments: Sequence[Segment], partials: Tensor) -> None:
    for table in _tables(segments):
        first, groups = _groups(rows, table)
        layout = _layout(rows, first, *_runs(rows, groups))
        sums = partials.numpy()[first : first + groups]
        _split(cpu_sign.project, groups * layout.runs, _length(table), table, sums, layout)


def add_reconstruction(rows: Rows, segments: Sequence[Segment], values: Tensor) -> None:
    for table in _tables(segments):
        first, groups = _groups(rows, table)
        layout = _layout(rows, first, *_runs(rows, groups))
        items = groups * layout.runs
        _split(cpu_sign.reconstruct, items, _length(table), table, values.numpy(), layout)


def fold(rows: Tensor) -> Tensor:
    while rows.shape[0] > 1:
        sums = torch.empty(-(-rows.shape[0] // FOLD), rows.shape[1], dtype=torch.float32)
        _split(cpu_numbers.fold, rows.shape[1], rows.numel(), rows.numpy(), sums.numpy())
        rows = sums
    return rows[0]


def add_products(
    entries: Entries, directions: Sequence[DirectionRows], elements: Tensor, sums: Tensor
) -> None:
    made = len(directions) * elements.numel()
    packed = _directions(entries, directions)
    _split(cpu_dense.products, len(directions), made, elements.numpy(), packed, sums.numpy())


def add_combination(
    entries: Entries,
    directions: Sequence[DirectionRows],
    scalars: Tensor,
    segments: Sequence[Segment],
) -> None:
    packed = _directions(entries, directions)
    for segment in segments:
        flat, offset = segment.flat, segment.offset
        first = offset // CHUNK
        chunks = -(-(offset + flat.numel()) // CHUNK) - first
        _split(
            cpu_dense.add_combination,
            chunks,
            len(directions) * flat.numel(),
            _stored(flat),
            offset,
            first,
            packed,
            scalars.numpy(),
            np.float32(segment.factor),
            _scaling([segment]),
        )


def round_to(target: Tensor, wide: Tensor, noise: Stream, offset: int) -> None:
    rows = -(-(offset + wide.numel()) // LANES) - offset // LANES
    arrays = _stored(target), wide.numpy()
    _split(cpu_dense.round_rows, rows, wide.numel(), *arrays, _key(noise), offset)


def dither(wide: Tensor, noise: Stream, offset: int, dropped: int) -> None:
    rows = -(-(offset + wide.numel()) // LANES) - offset // LANES
    _split(cpu_dense.dither_rows, rows, wide.numel(), wide.numpy(), _key(noise), offset, dropped)


def encode(numbers: Tensor, message: Message) -> None:
    arguments = numbers.numpy(), _blocks(message)
    _split(cpu_codes.encode, len(message.scales), message.padded, *arguments)


def decode(message: Message, numbers: Tensor) -> None:
    arguments = _blocks(message), numbers.numpy()
    _split(cpu_codes.decode, len(message.scales), message.padded, *arguments)


def is_finite(values: Tensor) -> bool:
    """Whether all are; contiguous, float32."""
    found = np.zeros(1, dtype=np.bool_)
    bits = values.detach().view(-1).numpy().view(np.uint32)
    _split(cpu_numbers.find_not_finite, len(bits), len(bits), bits, found)
    return not found[0]


def _split(kernel: Callable[..., None], items: int, work: int, *arguments: Any) -> None:
    """kernel(start, stop, *arguments) over all items, on torch's threads.

    Few items are dealt one by one: in shares of one and two, one thread could end up with most.
    """
    threads = torch.get_num_threads() if work > SMALL else 1
    if threads == 1:
        kernel(0, items, *arguments)
        return
    slices = items if items <= 8 * threads else 4 * threads
    edges = [items * n // slices for n in range(slices + 1)]
    pool = _pool(threads, os.getpid())
    running = [
        pool.submit(kernel, low, high, *arguments) for low, high in itertools.pairwise(edges)
    ]
    for future in running:
        future.result()


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One pool a process: a forked child must not wait for its parent's threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="sketch")


def _tables(segments: Sequence[Segment]) -> Iterator[Table]:
    """Segments of the same dtypes together, in the order of their elements."""

    def dtypes(segment: Segment) -> tuple[torch.dtype, torch.dtype | None]:
        return segment.flat.dtype, None if segment.before is None else segment.before.dtype

    for _, alike in itertools.groupby(segments, dtypes):
        yield _table(list(alike))


def _table(segments: Sequence[Segment]) -> Table:
    pieces, ends = list[Segment | None](), [segments[0].offset]
    for segment in segments:
        if segment.offset > ends[-1]:  # what is between is another process's
            pieces.append(None)
            ends.append(segment.offset)
        pieces.append(segment)
        ends.append(segment.offset + segment.flat.numel())
    edges = np.array(ends, dtype=np.int64) - ends[0]
    memory, places = _places([piece and piece.flat for piece in pieces], edges)
    befores = [piece and piece.before for piece in pieces]
    memory_before, places_before = (
        (None, np.zeros_like(places)) if segments[0].before is None else _places(befores, edges)
    )
    factors = np.array([piece.factor if piece else 0 for piece in pieces], dtype=np.float32)
    return Table(
        segments[0].offset,
        memory,
        places,
        memory_before,
        places_before,
        edges,
        factors,
        _scaling(pieces),
    )


def _scaling(pieces: Sequence[Segment | None]) -> Scaling | None:
    """The factors of a Table; there are none of elements that are not here."""
    if all(piece is None or piece.factors is None for piece in pieces):
        return None
    nothing = Factors(torch.zeros(0), torch.zeros(0))
    factors = [(piece and piece.factors) or nothing for piece in pieces]
    rows, columns = [own.rows.numpy() for own in factors], [own.columns.numpy() for own in factors]
    widths = np.array([len(vector) for vector in columns], dtype=np.int64)
    first_rows, first_columns = (
        np.cumsum([0, *map(len, vectors[:-1])], dtype=np.int64) for vectors in (rows, columns)
    )
    return Scaling(np.concatenate(rows), np.concatenate(columns), first_rows, first_columns, widths)


def _places(
    flats: Sequence[Tensor | None], edges: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """``memory`` and ``places`` of a Table."""
    some = next(flat for flat in flats if flat is not None)
    places = [
        HOLE if flat is None else flat.data_ptr() // flat.itemsize - 1 - edge
        for flat, edge in zip(flats, edges[:-1].tolist(), strict=True)
    ]
    return _memory(_stored(some[:0]).dtype), np.array(places, dtype=np.int64)


@functools.cache
def _memory(dtype: np.dtype[Any]) -> NDArray[Any]:
    """This process's memory as numbers of a dtype: number i is at address (i + 1) * itemsize."""
    kind = np.ctypeslib.as_ctypes_type(dtype)
    beginning = ctypes.cast(dtype.itemsize, ctypes.POINTER(kind))
    return np.ctypeslib.as_array(beginning, (2**62 // dtype.itemsize,))


def _stored(flat: Tensor) -> NDArray[Any]:
    """A tensor's memory; bfloat16 as uint16 and float16 as int16, as the kernels expect."""
    if flat.dtype != torch.float32:
        flat = flat.view(torch.uint16 if flat.dtype == torch.bfloat16 else torch.int16)
    array: NDArray[Any] = flat.numpy()
    return array


def _length(table: Table) -> int:
    """Elements of the table."""
    return int(table.edges[-1])


def _groups(rows: Rows, table: Table) -> tuple[int, int]:
    """The first group of rows that the elements touch, and how many."""
    first = table.first // (rows.width * FOLD)
    return first, -(-(table.first + _length(table)) // (rows.width * FOLD)) - first


def _runs(rows: Rows, groups: int) -> tuple[int, int]:
    """How many runs a group's outputs are cut into, and their length."""
    wanted = -(-4 * torch.get_num_threads() // groups)
    runs = max(-(-rows.counters // RUN), min(wanted, rows.counters // SHORTEST))
    return runs, -(-rows.counters // runs)


def _layout(rows: Rows, first_group: int, runs: int, run: int) -> Layout:
    keys = np.stack([_key(rows.signs), _key(rows.rotation or rows.signs)])
    rotated = rows.rotation is not None
    return Layout(
        rows.width, rows.depth, rows.counters, rotated, keys, first_group, runs, run, LONG
    )


def _directions(entries: Entries, directions: Sequence[DirectionRows]) -> Directions:
    return Directions(
        cpu_dense.kind_of(entries),
        np.array([_key(d.stream) for d in directions], dtype=np.uint64).reshape(-1, 4),
        np.array([direction.first for direction in directions], dtype=np.int64),
    )


def _blocks(message: Message) -> CodedBlocks:
    codes, scales, packing = message.codes.numpy(), message.scales.numpy(), message.packing
    levels = np.array(packing.levels, dtype=np.float32)
    return CodedBlocks(
        codes, scales, message.padded, _key(message.stream), packing.bits, packing.group, levels
    )


@functools.lru_cache(maxsize=8192)
def _key(stream: Stream) -> NDArray[np.uint64]:
    """A stream as kernels take it, shape (4,)."""
    return np.array([*stream.key, stream.round, stream.owner], dtype=np.uint64)
