"""Prints how many bytes project and reconstruct_ need beyond a tensor of 2^26 elements.

    python tests/sketch/peak_memory.py plain|strided|bfloat16|scaled K

The peak of the process's resident memory, reset after a first, small call, which may compile. The
lesser of two, since what the compiler gave back can still come and go.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from fullfed.sketch import Scales, SignBasis


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


def both(side: int, k: int, kind: str) -> int:
    """The growth, for two square matrices, without the coordinates themselves."""
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    columns = side + 1 if kind == "strided" else side
    delta, weights = (torch.ones(side, columns, dtype=dtype)[:, :side] for _ in range(2))
    basis = SignBasis(seed=1, round=1, coordinates=k)
    exponents = torch.ones(side, dtype=torch.int8)
    scales = Scales((exponents,), (exponents,)) if kind == "scaled" else None
    Path("/proc/self/clear_refs").write_text("5")
    start = peak()
    y = basis.project([delta], scales=scales)
    basis.reconstruct_([weights], y, scales=scales)
    return peak() - start - y.nbytes


if __name__ == "__main__":
    torch.set_num_threads(2)
    kind, k = sys.argv[1], int(sys.argv[2])
    both(1 << 9, 2**8, kind)
    print(min(both(1 << 13, k, kind) for _ in range(2)))
