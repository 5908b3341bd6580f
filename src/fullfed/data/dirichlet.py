"""Dirichlet draws from the counter-based generator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fullfed.randomness import Stream, uniforms


def dirichlet(stream: Stream, alpha: float, count: int) -> NDArray[np.float64]:
    """One draw from the symmetric Dirichlet(alpha) over `count` parts, shape (count,), sum 1.

    Gamma draws by Marsaglia and Tsang (2000), normalised. In logarithms, because for a small
    alpha a gamma draw may be below the least float64. Uses the stream's blocks 1 and 2, so that
    block 0 is the caller's.
    """
    boost = np.log1p(-uniforms(replace(stream, block=1), count)) / alpha
    logs = _log_gammas(replace(stream, block=2), alpha + 1.0, count) + boost
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def _log_gammas(stream: Stream, shape: float, count: int) -> NDArray[np.float64]:
    """Logarithms of Gamma(shape) draws for a shape of at least 1, by rejection."""
    d = shape - 1.0 / 3.0
    c = 1.0 / np.sqrt(9.0 * d)
    values = np.empty(count)
    pending = np.arange(count)
    start = 0
    while len(pending):
        u = uniforms(stream, 3 * len(pending), start).reshape(3, -1)
        start += 3 * len(pending)
        normal = np.sqrt(-2.0 * np.log1p(-u[0])) * np.cos(2.0 * np.pi * u[1])
        v = np.maximum(1.0 + c * normal, 1e-300) ** 3
        log_v = 3.0 * np.log(np.maximum(1.0 + c * normal, 1e-300))
        accepted = np.log1p(-u[2]) < 0.5 * normal**2 + d * (1.0 - v + log_v)
        values[pending[accepted]] = np.log(d) + log_v[accepted]
        pending = pending[~accepted]
    return values
