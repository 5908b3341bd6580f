"""Schedules: who takes part when."""

from __future__ import annotations

from dataclasses import dataclass

from fullfed.federation.cohort import sample_cohort


@dataclass(frozen=True)
class SampledCohort:
    """Each round ``size`` of ``clients``, uniformly at random, in parallel.

    Attributes:
        seed: the recipe's.
        clients: how many there are in the federation.
        size: how many take part in a round.
    """

    seed: int
    clients: int
    size: int

    def cohort(self, round: int) -> tuple[int, ...]:
        return sample_cohort(self.seed, round, self.clients, self.size)
