"""Who takes part in a round: a pure function of (seed, round)."""

from __future__ import annotations

from fullfed.randomness import Purpose, Stream, permutation


def sample_cohort(seed: int, round: int, clients: int, size: int) -> tuple[int, ...]:
    """``size`` distinct clients of ``clients``, uniformly at random, in increasing order."""
    chosen = permutation(Stream(seed, Purpose.COHORT, round=round), clients)[:size]
    return tuple(sorted(int(client) for client in chosen))
