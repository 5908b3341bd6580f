"""Writes golden.json: a little of everything the specification fixes, from the reference backend.

Run as ``python tests/sketch/make_golden.py`` when, and only when, the specification changes. The
reference is itself held to oracle.py, which shares no code with it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from fullfed.sketch import (
    SPECIFICATION,
    NormalBasis,
    RademacherBasis,
    SignBasis,
    Stream,
    accumulate_,
    permutation,
    perturb_,
    uniforms,
)

GOLDEN = Path(__file__).parent / "golden.json"


def ramp(count: int) -> torch.Tensor:
    """The float32 nearest to (7 i mod 31 - 15) / 10, so that the order of sums shows."""
    return torch.tensor([(7 * i % 31 - 15) / 10 for i in range(count)], dtype=torch.float32)


def bits(values: torch.Tensor) -> list[str]:
    """The float32 bits as eight hexadecimal digits."""
    return [f"{int(word) & 0xFFFFFFFF:08x}" for word in values.float().view(torch.int32)]


def compute(backend: str | None) -> dict[str, object]:
    """Every golden value, from one backend."""
    stream = Stream(seed=0x0123456789ABCDEF, purpose=4, round=5, owner=6, block=7)
    found: dict[str, object] = {
        "specification": SPECIFICATION,
        "key": [f"{word:08x}" for word in stream.key],
        "words 0 to 7": [f"{word:08x}" for word in stream.words(8)],
        "words 2**34 - 2 to 2**34 + 1": [f"{word:08x}" for word in stream.words(4, 2**34 - 2)],
        "uniforms": [value.hex() for value in uniforms(stream, 4).tolist()],
        "permutation of 10": permutation(stream, 10).tolist(),
    }
    for k in (1, 7, 100):
        basis = SignBasis(seed=42, round=3, owner=9, coordinates=k)
        y = basis.project([ramp(300)], backend=backend)
        weights = [ramp(300)]
        basis.reconstruct_(weights, y, scale=0.3, backend=backend)
        found[f"sign basis, K = {k}: coordinates"] = bits(y)
        found[f"sign basis, K = {k}: last weights"] = bits(weights[0][-8:])
    for cls in (NormalBasis, RademacherBasis):
        dense = cls(seed=42, round=3, blocks=(range(1), range(1, 3)), coordinates=(1, 3))
        parts = [ramp(1), ramp(5000), ramp(33)]
        y = dense.project(parts, backend=backend)
        dense.reconstruct_(parts, y, scale=1e-3, backend=backend)
        found[f"{cls.__name__}: coordinates"] = bits(y)
        found[f"{cls.__name__}: last weights"] = bits(parts[2][-8:])
    for distribution in ("rademacher", "gaussian"):
        weights = [ramp(20000)]
        perturb_(weights, stream, 0.1, distribution, backend=backend)  # type: ignore[arg-type]
        accumulate_(weights, [stream, Stream(1, 4)], [0.5, -0.3], distribution, backend=backend)  # type: ignore[arg-type]
        found[f"{distribution} directions: last weights"] = bits(weights[0][-8:])
    weights = [ramp(300).bfloat16()]
    SignBasis(seed=42, round=3, coordinates=7).reconstruct_(
        weights, torch.full((7,), 1e-3, dtype=torch.float32), rounding="stochastic", backend=backend
    )
    found["stochastic rounding: last weights"] = bits(weights[0][-8:])
    for distribution in ("rademacher", "gaussian"):
        weights = [ramp(300).bfloat16()]
        options = {"start": 20000, "rounding": "stochastic", "backend": backend}
        perturb_(weights, stream, 1e-3, distribution, **options)  # type: ignore[arg-type]
        name = f"{distribution} direction from element 20000, rounded stochastically"
        found[f"{name}: last weights"] = bits(weights[0][-8:])
    matrix, pair = ramp(300).view(20, 15), (ramp(20), ramp(15))
    basis = SignBasis(seed=42, round=3, coordinates=7)
    y = basis.project([matrix], weights=[pair], backend=backend)
    basis.reconstruct_([matrix], y, scale=0.3, inverse=[pair], backend=backend)
    found["weights of rows and columns: coordinates"] = bits(y)
    found["weights of rows and columns: last weights"] = bits(matrix.view(-1)[-8:])
    found["pairs of normals of words 0, 1, 2**16 - 1, 2**31, 2**32 - 1"] = _normals()
    return found


def _normals() -> list[str]:
    from fullfed.sketch.entries import normals

    words = np.array([0, 1, 2**16 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    return bits(torch.from_numpy(normals(words)).flatten())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(compute("reference"), indent=1) + "\n")
