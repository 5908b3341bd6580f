"""Writes golden.json: a little of everything the specification fixes, from the reference backend.

Run as ``python tests/sketch/make_golden.py`` when, and only when, the specification changes. Each
value stands with its inputs, in the terms of docs/shared-randomness.md, so that the file and that
page are enough to check an implementation. The reference is itself held to oracle.py, which shares
no code with it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from fullfed.sketch import (
    SPECIFICATION,
    Code,
    Distribution,
    GroupArgmax,
    LloydMax,
    NormalBasis,
    Purpose,
    Scales,
    SignBasis,
    Stream,
    accumulate_,
    dither_,
    permutation,
    perturb_,
    round_,
    uniforms,
)
from fullfed.sketch.entries import normals

GOLDEN = Path(__file__).parent / "golden.json"
STREAM = Stream(seed=0x0123456789ABCDEF, purpose=4, round=5, owner=6, block=7)
OTHER = Stream(seed=1, purpose=4)
CODING = Stream(seed=42, purpose=Purpose.CODES, round=3, owner=9)

Golden = dict[str, object]

CONVENTIONS = [
    "Numbers and weights are float32, given by their bits as eight hexadecimal digits.",
    "ramp(n) is the float32 nearest to (7 i mod 31 - 15) / 10 for i = 0, ..., n - 1.",
    "A stream is its seed, purpose, round, owner and block; scales are decimal fractions.",
    "Weights of several tensors are the ramp of each tensor's own elements.",
    "'last weights' are the last eight of the last tensor after the change.",
]


def ramp(count: int) -> torch.Tensor:
    """As CONVENTIONS say, so that the order of sums shows."""
    return torch.tensor([(7 * i % 31 - 15) / 10 for i in range(count)], dtype=torch.float32)


def bits(values: torch.Tensor) -> list[str]:
    """The float32 bits as eight hexadecimal digits."""
    return [f"{int(word) & 0xFFFFFFFF:08x}" for word in values.float().view(torch.int32)]


def named(stream: Stream) -> dict[str, int]:
    """A stream's name in plain numbers."""
    return {
        "seed": stream.seed,
        "purpose": int(stream.purpose),
        "round": stream.round,
        "owner": stream.owner,
        "block": stream.block,
    }


def compute(backend: str | None) -> Golden:
    """Every golden value, from one backend."""
    return {
        "specification": SPECIFICATION,
        "conventions": CONVENTIONS,
        "words": _words(),
        "pairs of normals": _normals(),
        "sign basis": [_sign(300, k, backend) for k in (1, 7, 100)],
        "scales": _scaled(backend),
        "dense basis": _dense(backend),
        "directions": [
            _directions("rademacher", 0, backend),
            _directions("gaussian", 0, backend),
            _directions("rademacher", 20000, backend),
            _directions("gaussian", 20000, backend),
        ],
        "stochastic rounding": _rounding(backend),
        "dither": _dither(backend),
        "not a number in 16 bits": _not_a_number(backend),
        "codes": [
            _coded(code, count, backend)
            for code, count in (
                (GroupArgmax(1), 77),
                (GroupArgmax(2), 1),
                (GroupArgmax(8), 300),
                (GroupArgmax(256), 62),
                (GroupArgmax(512), 66000),
                (LloydMax(2), 77),
                (LloydMax(3), 1000),
                (LloydMax(4), 300),
            )
        ],
    }


def _words() -> Golden:
    return {
        "stream": named(STREAM),
        "key": [f"{word:08x}" for word in STREAM.key],
        "words 0 to 7": [f"{word:08x}" for word in STREAM.words(8)],
        "words 2**34 - 2 to 2**34 + 1": [f"{word:08x}" for word in STREAM.words(4, 2**34 - 2)],
        "uniforms 0 to 3": [value.hex() for value in uniforms(STREAM, 4).tolist()],
        "permutation of 10": permutation(STREAM, 10).tolist(),
    }


def _normals() -> Golden:
    words = [0, 1, 2**16 - 1, 2**31, 2**32 - 1]
    pairs = torch.from_numpy(normals(np.array(words, dtype=np.uint32))).flatten()
    return {"words": words, "first and second number of each": bits(pairs)}


def _sign(d: int, k: int, backend: str | None) -> Golden:
    basis, weights = SignBasis(seed=42, round=3, owner=9, coordinates=k), [ramp(d)]
    y = basis.project(weights, backend=backend)
    basis.reconstruct_(weights, y, scale=0.3, backend=backend)
    return {
        "seed, round, owner, K": [42, 3, 9, k],
        "delta and weights": f"ramp({d})",
        "scale": "0.3",
        "coordinates": bits(y),
        "last weights": bits(weights[0][-8:]),
    }


def _scaled(backend: str | None) -> Golden:
    def exponents(count: int, step: int) -> torch.Tensor:
        return torch.tensor([i * step % 255 - 127 for i in range(count)], dtype=torch.int8)

    columns = exponents(15, 53), torch.zeros(1, dtype=torch.int8)
    scales = Scales((exponents(20, 37), exponents(9, 11)), columns)
    basis, weights = SignBasis(42, 3, 100, owner=9), [ramp(300).view(20, 15), ramp(9)]
    y = basis.project(weights, scales=scales, backend=backend)
    basis.reconstruct_(weights, y, scale=0.3, scales=scales, backend=backend)
    perturb_(weights, STREAM, 0.1, scales=scales, backend=backend)
    return {
        "seed, round, owner, K": [42, 3, 9, 100],
        "delta and weights": ["ramp(300), 20 rows of 15", "ramp(9)"],
        "exponents of rows i": ["37 i mod 255 - 127", "11 i mod 255 - 127"],
        "exponents of columns j": ["53 j mod 255 - 127", "0"],
        "scale": "0.3",
        "coordinates": bits(y),
        "then perturbed by": {"stream": named(STREAM), "scale": "0.1"},
        "last weights of each": [bits(tensor.view(-1)[-8:]) for tensor in weights],
    }


def _dense(backend: str | None) -> Golden:
    basis = NormalBasis(42, 3, blocks=(range(1), range(1, 3)), coordinates=(1, 3))
    parts = [ramp(1), ramp(5000), ramp(33)]
    y = basis.project(parts, backend=backend)
    basis.reconstruct_(parts, y, scale=1e-3, backend=backend)
    return {
        "seed, round, owner": [42, 3, basis.owner],
        "block 0": {"tensors": ["ramp(1)"], "K": 1},
        "block 1": {"tensors": ["ramp(5000)", "ramp(33)"], "K": 3},
        "scale": "0.001",
        "coordinates": bits(y),
        "last weights": bits(parts[2][-8:]),
    }


def _directions(distribution: Distribution, start: int, backend: str | None) -> Golden:
    weights, options = [ramp(20000)], {"start": start, "backend": backend}
    perturb_(weights, STREAM, 0.1, distribution, **options)  # type: ignore[arg-type]
    accumulate_(weights, [STREAM, OTHER], [0.5, -0.3], distribution, **options)  # type: ignore[arg-type]
    return {
        "distribution": distribution,
        "weights": "ramp(20000)",
        "start": start,
        "perturbed by": {"stream": named(STREAM), "scale": "0.1"},
        "then accumulated": {
            "streams": [named(STREAM), named(OTHER)],
            "scalars": ["0.5", "-0.3"],
        },
        "last weights": bits(weights[0][-8:]),
    }


def _rounding(backend: str | None) -> Golden:
    stream = Stream(42, Purpose.ROUNDING, 3, 9)
    weights = [torch.zeros(count, dtype=torch.bfloat16) for count in (1000, 300)]
    round_(weights, [ramp(1000), ramp(300)], stream, backend=backend)
    return {
        "stream": named(stream),
        "values of two tensors": ["ramp(1000)", "ramp(300)"],
        "last weights": bits(weights[1][-8:]),
    }


def _dither(backend: str | None) -> Golden:
    stream = Stream(42, Purpose.DITHER)
    last = {}
    for dtype in (torch.bfloat16, torch.float16):
        values = [ramp(count).to(dtype).float() for count in (1000, 300)]
        dither_(values, dtype, stream, backend=backend)
        last[str(dtype).removeprefix("torch.")] = bits(values[1][-8:])
    return {
        "stream": named(stream),
        "values of two tensors, rounded": ["ramp(1000)", "ramp(300)"],
        "last values": last,
    }


def _not_a_number(backend: str | None) -> Golden:
    stored = {}
    for dtype in (torch.bfloat16, torch.float16):
        weights = [torch.full((1,), float("nan"), dtype=dtype)]
        perturb_(weights, STREAM, 0.1, backend=backend)
        stored[str(dtype).removeprefix("torch.")] = f"{int(weights[0].view(torch.int16)):04x}"
    return {"weights": "one NaN, perturbed", "stored": stored}


def _coded(code: Code, count: int, backend: str | None) -> Golden:
    """The message is an input: only what it is decoded to is specified."""
    sent = code.encode(ramp(count), CODING, backend=backend)
    found = sent.decode(backend)
    packing = code.packing
    return {
        "stream": named(CODING),
        "code": f"levels of {packing.bits} bits"
        if packing.levels
        else f"largest of a group of {packing.group}",
        "K": count,
        "codes": sent.codes.numpy().tobytes().hex(),
        "scales": bits(sent.scales),
        "first eight numbers": bits(found[:8]),
        "last eight numbers": bits(found[-8:]),
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(compute("reference"), indent=1) + "\n")
