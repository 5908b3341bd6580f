"""Epsilon as others reckon it: by a formula, and by convolving privacy losses on our own grid."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_STEP, _REACH = 5e-4, 60.0
_CELLS = round(2 * _REACH / _STEP)


def gaussian_epsilon(noise: float, delta: float) -> float:
    """The smallest for which delta is enough (Balle and Wang 2018, theorem 5), by bisection."""

    def due(epsilon: float) -> float:
        a, b = 1 / (2 * noise), epsilon * noise
        return float(stats.norm.cdf(a - b) - math.exp(epsilon) * stats.norm.cdf(-a - b))

    low, high = 0.0, 200.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if due(middle) > delta else (low, middle)
    return high


def sampled_epsilon(rounds: Mapping[tuple[float, float], int], delta: float) -> float:
    """The same of Gaussian mechanisms of Poisson samples, by their noise and rate, each in so many
    rounds: of presence against absence, and the other way round."""
    ways = [_losses(*kind) for kind in rounds]
    return max(
        _one_way([losses[n] for losses in ways], list(rounds.values()), delta) for n in (0, 1)
    )


def _losses(noise: float, rate: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The probabilities of the privacy losses of one round, either way."""
    x = np.linspace(-14 * noise, 14 * noise + 1, 1_000_001)
    absent = stats.norm.pdf(x, 0, noise)
    present = (1 - rate) * absent + rate * stats.norm.pdf(x, 1, noise)
    loss = np.log1p(rate * np.expm1((x - 0.5) / noise**2))

    def spread(loss: NDArray[np.float64], density: NDArray[np.float64]) -> NDArray[np.float64]:
        place = np.clip(np.rint((loss + _REACH) / _STEP).astype(int), 0, _CELLS - 1)
        return np.bincount(place, density * (x[1] - x[0]), _CELLS)

    return spread(loss, present), spread(-loss, absent)


def _one_way(losses: list[NDArray[np.float64]], rounds: list[int], delta: float) -> float:
    """The smallest epsilon for which delta is enough, by bisection."""
    transformed = np.prod(
        [
            np.fft.rfft(np.roll(spread, -_CELLS // 2)) ** times
            for spread, times in zip(losses, rounds, strict=True)
        ],
        axis=0,
    )
    many = np.roll(np.fft.irfft(transformed, _CELLS), _CELLS // 2)
    grid = np.arange(_CELLS) * _STEP - _REACH
    low, high = 0.0, _REACH
    for _ in range(60):
        middle = (low + high) / 2
        excess = np.clip(-np.expm1(middle - grid), 0, None)
        low, high = (middle, high) if float(many @ excess) > delta else (low, middle)
    return high
