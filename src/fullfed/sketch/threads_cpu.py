"""Numba kernels on as many threads as torch uses."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

SMALL = 1 << 16  # numbers made; below this a second thread costs more than it gains


def split(kernel: Callable[..., None], items: int, work: int, *arguments: Any) -> None:
    """kernel(start, stop, ...) over items, on torch's threads; kernels release the GIL."""
    threads = torch.get_num_threads() if work > SMALL else 1
    # Few items are dealt one by one: in shares of one and two, one thread could end up with most.
    slices = (items if items <= 8 * threads else 4 * threads) if threads > 1 else 1
    if slices == 1:
        kernel(0, items, *arguments)
        return
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
