"""The specification again, one element at a time in plain Python, sharing no code with the kernels.

Only Philox itself comes from the library; it is held to the Random123 vectors elsewhere.
"""

from __future__ import annotations

import math

import numpy as np

from fullfed.sketch.generator import Stream, philox

f32 = np.float32


def outputs(stream: Stream, counter: int) -> list[int]:
    words = [counter & 0xFFFFFFFF, counter >> 32, stream.round, stream.owner]
    return [int(w) for w in philox(np.array(words, dtype=np.uint32), stream.key)]


def field(stream: Stream, bits: int, width: int, row: int, column: int) -> int:
    parts = 128 // bits
    big = sum(w << (32 * i) for i, w in enumerate(outputs(stream, row // parts * width + column)))
    return big >> (bits * (row % parts)) & ((1 << bits) - 1)


def place(basis, g: int) -> tuple[int, float]:
    """Coordinate and sign of element g under a sign basis."""
    rows, k = basis.rows, basis.coordinates
    q, i = divmod(g, k)
    word = outputs(rows.rotation, q // 4)[q % 4]
    column = (i + (word * k >> 32)) % k
    return column, -1.0 if field(rows.signs, 1, k, q, column) else 1.0


def sign_project(basis, delta: np.ndarray) -> np.ndarray:
    k = basis.coordinates
    rows = -(-delta.size // k)
    table = np.zeros((rows, k), dtype=f32)
    for g, value in enumerate(delta):
        column, sign = place(basis, g)
        table[g // k, column] = f32(sign) * f32(value)
    while len(table) > 1 or rows:
        rows = 0
        sums = np.zeros((-(-len(table) // 128), k), dtype=f32)
        for q, row in enumerate(table):
            sums[q // 128] += row
        table = sums
    return table[0]


def sign_reconstruct(basis, weights: np.ndarray, y: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """One scale an element, float32."""
    result = weights.astype(f32).copy()
    for g in range(result.size):
        column, sign = place(basis, g)
        result[g] = result[g] + f32(sign) * (f32(y[column]) * scales[g])
    return result


def truncated_exact(h: int, d: int) -> float:
    """The exact truncated normal for the 16-bit number h, to about 1e-14, by bisection."""
    a = 1 / math.sqrt(d)
    target = (2 * h - 65535) / 65536 * math.erf(a / math.sqrt(2))
    low, high = -a, a
    for _ in range(80):
        middle = (low + high) / 2
        if math.erf(middle / math.sqrt(2)) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2
