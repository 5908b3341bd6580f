"""The numba backend: CPU tensors, as many threads as torch uses."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fullfed.sketch import dense_cpu, sign_cpu
from fullfed.sketch.backends import Direction, Rows
from fullfed.sketch.entries import Entries
from fullfed.sketch.generator import Stream
from fullfed.sketch.layout import FOLD

RUN = 4096  # columns whose signs and sums stay in the first-level cache
SMALL = 1 << 16  # numbers made; below this a second thread costs more than it gains


def add_projection(rows: Rows, piece: Tensor, offset: int, partials: Tensor) -> None:
    _sweep(rows, piece, offset, partials.numpy(), into_sums=True)


def add_reconstruction(rows: Rows, piece: Tensor, offset: int, values: Tensor) -> None:
    _sweep(rows, piece, offset, values.numpy()[None], into_sums=False)


def _sweep(
    rows: Rows, piece: Tensor, offset: int, sums: NDArray[np.float32], into_sums: bool
) -> None:
    elements, width = piece.numpy(), rows.width
    first = offset // (width * FOLD)
    groups = -(-(offset + elements.size) // (width * FOLD)) - first
    runs = -(-width // RUN)
    keys = np.stack([_key(rows.signs), _key(rows.rotation or rows.signs)])
    _split(
        sign_cpu.sweep,
        groups * runs,
        elements.size,
        elements,
        offset,
        sums[first:] if into_sums else sums,
        first,
        runs,
        -(-width // runs),
        keys,
        rows.rotation is not None,
        into_sums,
    )


def add_products(
    entries: Entries, directions: Sequence[Direction], piece: Tensor, sums: Tensor
) -> None:
    _split(
        dense_cpu.products,
        len(directions),
        len(directions) * piece.numel(),
        piece.numpy(),
        *_packed(entries, directions),
        sums.numpy(),
    )


def add_combination(
    entries: Entries, directions: Sequence[Direction], scalars: Tensor, piece: Tensor
) -> None:
    _split(
        dense_cpu.combine,
        -(-piece.shape[0] // 32),
        len(directions) * piece.numel(),
        piece.numpy(),
        *_packed(entries, directions),
        scalars.numpy(),
    )


def _packed(entries: Entries, directions: Sequence[Direction]) -> tuple[Any, ...]:
    """Keys, first rows, bits and series as the kernels take them."""
    # A leading zero coefficient changes no bit and lets the kernel count on two.
    series = (*entries.series, 0.0) if len(entries.series) == 1 else entries.series
    return (
        np.stack([_key(direction.stream) for direction in directions]),
        np.array([direction.first for direction in directions], dtype=np.int64),
        entries.bits,
        np.array(series, dtype=np.float32),
    )


@functools.lru_cache(maxsize=8192)
def _key(stream: Stream) -> NDArray[np.uint64]:
    return np.array([*stream.key, stream.round, stream.owner], dtype=np.uint64)


def _split(kernel: Callable[..., None], items: int, work: int, *arguments: Any) -> None:
    """kernel(start, stop, ...) over items, on torch's threads; kernels release the GIL."""
    threads = torch.get_num_threads() if work > SMALL else 1
    slices = min(items, 4 * threads) if threads > 1 else 1
    edges = [items * n // slices for n in range(slices + 1)]
    if slices == 1:
        kernel(0, items, *arguments)
        return
    pool = _pool(threads, os.getpid())
    running = [
        pool.submit(kernel, low, high, *arguments)
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    for future in running:
        future.result()


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One pool a process: a forked child must not wait for its parent's threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="sketch")
