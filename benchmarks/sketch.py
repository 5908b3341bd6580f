"""Speed of fullfed.sketch against a memory copy and against plain PyTorch.

    python benchmarks/sketch.py                       a few minutes; --quick for a first look
    python benchmarks/sketch.py --threads 2 --json sketch.json

Each time is the best of several; a copy of the same tensor is timed next to each. Ratios, not
seconds, are what to compare between machines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fullfed.sketch import (
    NormalBasis,
    Purpose,
    RademacherBasis,
    SignBasis,
    Stream,
    accumulate_,
    perturb_,
)

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


def sign_rows(delta: Tensor, weights: Tensor, k: int) -> Iterator[Row]:
    """Project (from a delta; from before and after) and reconstruct, over a copy."""
    basis = SignBasis(seed=1, round=1, coordinates=k)
    nothing = torch.zeros(k, device=delta.device)
    acts = {
        "copy": lambda: weights.copy_(delta),
        "project": lambda: basis.project([delta]),
        "project, before": lambda: basis.project([delta], before=[weights]),
        "reconstruct_": lambda: basis.reconstruct_([weights], nothing),
    }
    copy, *times = seconds(delta.device.type, *acts.values(), repeats=15)
    for operation, taken in zip(list(acts)[1:], times, strict=True):
        yield {
            "basis": "sign",
            "operation": operation,
            "dtype": str(delta.dtype).removeprefix("torch."),
            "d": delta.numel(),
            "K": k,
            "seconds": taken,
            "copies": taken / copy,
            "copy GB/s": 2 * delta.nbytes / copy / 1e9,
        }


def dense_rows(delta: Tensor, k: int) -> Iterator[Row]:
    """Numbers made and used a second, and how often that is plain PyTorch's rate."""
    weights, d, device = torch.zeros_like(delta), delta.numel(), delta.device.type
    plain = plain_rate(delta, device)
    yield {"basis": "trunc_normal_", "operation": "project", "d": d, "samples/s": plain}
    for cls in (NormalBasis, RademacherBasis):
        acts = dense_acts(
            cls(seed=1, round=1, blocks=(range(1),), coordinates=(k,)), delta, weights
        )
        for operation, act in acts.items():
            rate = k * d / seconds(device, act)[0]
            yield {
                "basis": cls.__name__,
                "operation": operation,
                "d": d,
                "K": k,
                "samples/s": rate,
                "over plain": rate / plain,
            }


def dense_acts(
    basis: NormalBasis | RademacherBasis, delta: Tensor, weights: Tensor
) -> dict[str, Callable[[], object]]:
    nothing = torch.zeros(sum(basis.coordinates), device=delta.device)
    return {
        "project": lambda: basis.project([delta]),
        "reconstruct_": lambda: basis.reconstruct_([weights], nothing),
    }


def plain_rate(delta: Tensor, device: str) -> float:
    """One basis vector at a time from a torch.Generator, as the published code does."""
    bound, vector = delta.numel() ** -0.5, torch.empty_like(delta)
    generator = torch.Generator(device=device).manual_seed(1)

    def project() -> Tensor:
        torch.nn.init.trunc_normal_(vector, 0.0, 1.0, -bound, bound, generator=generator)
        return vector @ delta

    return delta.numel() / seconds(device, project)[0]


def direction_rows(device: str, d: int, count: int) -> Iterator[Row]:
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
                "basis": distribution,
                "operation": operation,
                "d": d,
                "K": made,
                "samples/s": made * d / seconds(device, act)[0],
            }


def show(row: Row) -> str:
    cells = []
    for name, value in row.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        cells.append(f"{name} {text}")
    return "  ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows and the machine here")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device
    sizes = [2**20, 2**24, 2**26] + ([2**30] if device == "cuda" else [])
    counts = [2**n for n in range(8, 21, 2)]
    if options.quick:
        sizes, counts = [2**24], [2**8, 2**14, 2**20]
    rows: list[Row] = []

    def run() -> Iterator[Row]:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for d in sizes if dtype == torch.float32 else sizes[-1:]:
                delta = torch.randn(d, device=device).mul_(1e-3).to(dtype)
                weights = torch.zeros_like(delta)
                for k in counts:
                    yield from sign_rows(delta, weights, k)
        for d in sizes[: 1 if device == "cpu" else 2]:
            yield from dense_rows(torch.randn(d, device=device), 32)
        yield from direction_rows(device, sizes[0], 32)

    for row in run():
        print(show(row), flush=True)
        rows.append(row)
    if options.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "load": os.getloadavg(),
        }
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
