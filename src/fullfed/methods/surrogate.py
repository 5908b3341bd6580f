"""A smaller model for clients that cannot hold the whole one (the paper's compressed download)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fullfed.federation.messages import Value
from fullfed.randomness import Purpose, Stream, permutation


@dataclass(frozen=True)
class Surrogate:
    """Which layers a client goes without: its own block is whole, others are left out at random.

    The first and the last block of layers stay. What is kept of the others is held, and sent, in
    8 bits. The surrogate is for training alone: nobody evaluates, saves or averages it.

    Attributes:
        seed: the recipe's.
        layers: how many blocks of layers there are.
        kept: rho, the share of the other blocks that a client gets, rounded up.
    """

    seed: int
    layers: int
    kept: float

    def dropped(self, round: int, client: int, block: int) -> list[Value]:
        """The blocks that a client goes without, in increasing order."""
        others = self.layers - (block < self.layers)
        free = [b for b in range(1, self.layers - 1) if b != block]
        count = min(others - math.ceil(self.kept * others), len(free))
        order = permutation(Stream(self.seed, Purpose.BLOCKS, round, client), len(free))
        return [*sorted(free[n] for n in order[:count])]
