"""How many coordinates each block gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from fullfed.errors import UserError


def allocate(total: int, weights: Sequence[float], sizes: Sequence[int]) -> tuple[int, ...]:
    """Split ``total`` coordinates over blocks in proportion to ``weights``.

    Every block gets at least 1 and at most its size; what a full block cannot take goes to
    the others. Shares are rounded by largest remainder, ties to the earlier block, in exact
    arithmetic, so every machine obtains the same split. For a budget of coordinates the
    squared error of a dense basis is least with weights sqrt(d_l) * ||delta_l||.

    Raises:
        UserError: a total below the number of blocks or above the sum of sizes, or weights
            that are not finite and non-negative.
    """
    if len(weights) != len(sizes):
        raise UserError(f"{len(weights)} weights for {len(sizes)} blocks.")
    if not len(sizes) <= total <= sum(sizes):
        raise UserError(
            f"{total} coordinates for {len(sizes)} blocks of {sum(sizes)} elements in all; "
            "ask for at least one per block and at most one per element."
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise UserError("allocation weights must be finite and not negative.")
    exact = [Fraction(weight) for weight in weights]
    if not any(exact):
        exact = [Fraction(1)] * len(sizes)
    return _round(total, _shares(total, exact, sizes), sizes)


def _shares(total: int, weights: list[Fraction], sizes: Sequence[int]) -> list[Fraction]:
    """Proportional shares, each clamped to [1, size], adding up to total exactly."""
    shares = [Fraction(0)] * len(sizes)
    open_blocks, left = set(range(len(sizes))), Fraction(total)
    while open_blocks:
        weight = sum((weights[n] for n in open_blocks), Fraction(0))
        for n in open_blocks:
            shares[n] = left * weights[n] / weight if weight else left / len(open_blocks)
        low = [n for n in open_blocks if shares[n] < 1]
        high = [n for n in open_blocks if shares[n] > sizes[n]]
        short = sum((1 - shares[n] for n in low), Fraction(0))
        excess = sum((shares[n] - sizes[n] for n in high), Fraction(0))
        clamped = low if short > excess else high if excess > short else low + high
        if not clamped:
            break
        for n in clamped:
            shares[n] = Fraction(1) if shares[n] < 1 else Fraction(sizes[n])
            left -= shares[n]
            open_blocks.remove(n)
    return shares


def _round(total: int, shares: list[Fraction], sizes: Sequence[int]) -> tuple[int, ...]:
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda n: (counts[n] - shares[n], n))
    for n in by_remainder[: total - sum(counts)]:
        counts[n] += 1
    return tuple(counts)
