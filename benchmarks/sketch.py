"""Speed of fullfed.sketch against a memory copy and against plain PyTorch.

    python benchmarks/sketch.py                       a few minutes; --quick for a first look
    python benchmarks/sketch.py --threads 2 --json > sketch.json

Each time is the best of several, with that of a copy of the same tensor measured next to it:
"copies" divides one by the other, "bandwidth" is the bytes an operation must move over its time, as
a share of what the copy moved. Dense bases give the random numbers made and used a second, and
their ratio to plain PyTorch's, one ``trunc_normal_`` vector at a time, measured in turn with them.
Ratios, not seconds, are what to compare between machines.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fullfed.sketch import NormalBasis, Purpose, Scales, SignBasis, Stream, accumulate_, perturb_
from machine import machine

Row = dict[str, str | int | float]


def seconds(device: str, *acts: Callable[[], object], repeats: int = 5) -> list[float]:
    """The best time of each, taken in turn so that a busy machine disturbs all alike."""

    def once(act: Callable[[], object]) -> float:
        time.sleep(0.005)  # torch's own threads wait actively for a while after they worked
        start = time.perf_counter()
        act()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for act in acts:
        once(act)
    times = [[once(act) for act in acts] for _ in range(repeats)]
    return [min(column) for column in zip(*times, strict=True)]


def in_tensors(flat: Tensor) -> list[Tensor]:
    """The same memory as 109 tensors, of the sizes that a Llama of 12 layers has."""
    hidden = int(640 * (flat.numel() / 2**26) ** 0.5)
    layer = [*[hidden * hidden] * 4, *[hidden * (8 * hidden // 3)] * 3, hidden, hidden]
    return list(flat.split([flat.numel() - 12 * sum(layer), *layer * 12]))


def sign_rows(
    delta: Tensor, weights: Tensor, k: int, backend: str, split: bool = False
) -> Iterator[Row]:
    """Project (from a delta; from before and after) and reconstruct, over a copy.

    Args:
        split: whether they are ``in_tensors``.
    """
    basis = SignBasis(seed=1, round=1, coordinates=k)
    nothing = torch.zeros(k, device=delta.device)
    deltas, models = (in_tensors(t) if split else [t] for t in (delta, weights))
    acts: dict[str, tuple[int, Callable[[], object]]] = {  # tensors read or written
        "copy": (2, lambda: weights.copy_(delta)),
        "project": (1, lambda: basis.project(deltas, backend=backend)),
        "project, before": (2, lambda: basis.project(deltas, before=models, backend=backend)),
        "reconstruct_": (2, lambda: basis.reconstruct_(models, nothing, backend=backend)),
    }
    repeats = 3 if backend == "reference" else 15
    copy, *times = seconds(delta.device.type, *(act for _, act in acts.values()), repeats=repeats)
    for (operation, (moved, _)), taken in zip(list(acts.items())[1:], times, strict=True):
        yield {
            "backend": backend,
            "basis": "sign",
            "operation": operation,
            "dtype": _name(delta.dtype),
            "d": delta.numel(),
            "tensors": len(deltas),
            "K": k,
            "seconds": taken,
            "copies": taken / copy,
            "bandwidth": moved / 2 * copy / taken,
            "copy GB/s": 2 * delta.nbytes / copy / 1e9,
        }


def scaled_rows(delta: Tensor, weights: Tensor, k: int, backend: str) -> Iterator[Row]:
    """A matrix with scales, over a copy of it."""
    side = 1 << (delta.numel().bit_length() - 1) // 2
    matrix, model = delta.view(-1, side), weights.view(-1, side)
    rows, columns = (torch.arange(n).remainder(60).to(torch.int8) for n in matrix.shape)
    scales, basis = Scales((rows,), (columns,)), SignBasis(seed=1, round=1, coordinates=k)
    nothing, stream = torch.zeros(k, device=delta.device), Stream(1, Purpose.DIRECTION)
    options: dict[str, Any] = {"scales": scales, "backend": backend}
    acts: dict[str, Callable[[], object]] = {
        "project": lambda: basis.project([matrix], **options),
        "project, before": lambda: basis.project([matrix], before=[model], **options),
        "reconstruct_": lambda: basis.reconstruct_([model], nothing, **options),
        "perturb_ rademacher": lambda: perturb_([model], stream, 1e-3, **options),
        "perturb_ gaussian": lambda: perturb_([model], stream, 1e-3, "gaussian", **options),
    }
    copy, *times = seconds(delta.device.type, lambda: weights.copy_(delta), *acts.values())
    for operation, taken in zip(acts, times, strict=True):
        yield {
            "backend": backend,
            "basis": "sign, scales",
            "operation": operation,
            "dtype": _name(delta.dtype),
            "d": delta.numel(),
            "K": k,
            "seconds": taken,
            "copies": taken / copy,
        }


def dense_rows(delta: Tensor, k: int, backend: str) -> Iterator[Row]:
    """Numbers made and used a second, and how often that is plain PyTorch's rate."""
    weights, d, device = torch.zeros_like(delta), delta.numel(), delta.device.type
    basis = NormalBasis(seed=1, round=1, blocks=(range(1),), coordinates=(k,))
    nothing = torch.zeros(k, device=device)
    acts: dict[str, Callable[[], object]] = {
        "project": lambda: basis.project([delta], backend=backend),
        "reconstruct_": lambda: basis.reconstruct_([weights], nothing, backend=backend),
    }
    one, *times = seconds(device, plainly(delta), *acts.values(), repeats=7)
    for operation, taken in zip(acts, times, strict=True):
        yield {
            "backend": backend,
            "basis": "NormalBasis",
            "operation": operation,
            "dtype": _name(delta.dtype),
            "d": d,
            "K": k,
            "samples/s": k * d / taken,
            "plain samples/s": d / one,
            "over plain": k * one / taken,
        }


def plainly(delta: Tensor) -> Callable[[], Tensor]:
    """One basis vector from a torch.Generator, and its product, as the published code does."""
    bound, vector = delta.numel() ** -0.5, torch.empty_like(delta)
    generator = torch.Generator(device=delta.device).manual_seed(1)

    def project() -> Tensor:
        torch.nn.init.trunc_normal_(vector, 0.0, 1.0, -bound, bound, generator=generator)
        return vector @ delta

    return project


def direction_rows(device: str, d: int, count: int, backend: str) -> Iterator[Row]:
    """Zeroth-order directions: one in place, and the sum of many in one pass."""
    weights = [torch.zeros(d, device=device)]
    streams = [Stream(1, Purpose.DIRECTION, n) for n in range(count)]
    for distribution in ("rademacher", "gaussian"):
        acts = {
            "perturb_": (1, lambda name=distribution: perturb_(weights, streams[0], 1e-3, name)),
            "accumulate_": (
                count,
                lambda name=distribution: accumulate_(weights, streams, [1e-3] * count, name),
            ),
        }
        for operation, (made, act) in acts.items():
            yield {
                "backend": backend,
                "basis": distribution,
                "operation": operation,
                "d": d,
                "K": made,
                "samples/s": made * d / seconds(device, act)[0],
            }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def show(row: Row) -> str:
    cells = []
    for name, value in row.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        cells.append(f"{name} {text}")
    return "  ".join(cells)


def all_rows(device: str, quick: bool) -> Iterator[Row]:
    own = "triton" if device == "cuda" else "numba"
    sizes = [2**20, 2**24, 2**26] + ([2**30] if device == "cuda" else [])
    counts = [2**n for n in range(8, 23, 2)]
    if quick:
        sizes, counts = [2**24], [2**8, 2**14, 2**20]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for d in sizes if dtype == torch.float32 else sizes[-1:]:
            delta = torch.randn(d, device=device).mul_(1e-3).to(dtype)
            weights = torch.zeros_like(delta)
            for k in (k for k in counts if k <= d):
                yield from sign_rows(delta, weights, k, own)
            if d == sizes[-1] and dtype == torch.float32:
                for k in counts:
                    yield from sign_rows(delta, weights, k, own, split=True)
                for k in counts[::3]:
                    yield from scaled_rows(delta, weights, k, own)
        delta = torch.randn(sizes[0], device=device).to(dtype)
        yield from dense_rows(delta, 256, own)
    if device == "cuda":
        yield from dense_rows(torch.randn(2**24, device=device), 256, own)
    yield from direction_rows(device, sizes[0], 32, own)
    delta = torch.randn(2**20, device=device)
    yield from sign_rows(delta, torch.zeros_like(delta), 2**14, "reference")
    yield from dense_rows(delta, 2, "reference")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="rows and machine, on standard output")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    for row in all_rows(options.device, options.quick):
        print(show(row), file=sys.stderr if options.json else sys.stdout, flush=True)
        rows.append(row)
    if options.json:
        print(json.dumps({"machine": machine(options.device), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
