"""What a run's rounds have cost each client of the budget of its records.

Who was to take part in a round counts as having done so: whether a visit came to anything is no
matter. A client whose budget does not allow for a visit has made none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fullfed.methods.private_training import PrivateTraining
from fullfed.methods.schedules import Schedule

if TYPE_CHECKING:
    from fullfed.privacy.accountant import Spent
    from fullfed.privacy.records import RecordMechanism


@dataclass(frozen=True)
class RecordBudget:
    """The account of a run in which each client adds noise for its records.

    Args:
        local: the clients' work.
        schedule: who is to take part.
        samples: how many clients have, as far as it is known.
        undone: rounds that were over and then taken back.
    """

    local: PrivateTraining
    schedule: Schedule
    samples: Mapping[int, int]
    undone: Sequence[int]
    _cohorts: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def epsilon(self, rounds: int) -> float | None:
        """The largest of the clients' when so many rounds are over; None where it is not known how
        many records one has that was to take part."""
        planned = self._planned(rounds)
        if not planned.keys() <= self.samples.keys():
            return None
        spent = [
            self._mechanism(client).epsilon(self._mechanism(client).visited(visits), 0)
            for client, visits in planned.items()
            for visits in [self._made(client, visits)]
        ]
        return max(spent, default=0.0)

    def is_anybody_left(self, rounds: int) -> bool:
        """Whether a client that is to take part in the last of so many rounds could, as far as it
        is known."""
        planned = self._planned(rounds)
        return any(
            client not in self.samples or self._made(client, planned[client]) == planned[client]
            for client in self._cohort(rounds - 1)
        )

    def spent(self, client: int, rounds: int) -> Spent:
        """The noisy steps that a client had made when so many rounds were over."""
        return self._mechanism(client).visited(self._made(client, self._planned(rounds)[client]))

    def _mechanism(self, client: int) -> RecordMechanism:
        return self.local.mechanism(self.samples[client])

    def _made(self, client: int, planned: int) -> int:
        """How many of the visits that a client was to make its budget allowed for."""
        most, mechanism = self.local.table.epsilon, self._mechanism(client)
        while most is not None and planned and mechanism.epsilon({}, planned) > most:
            planned -= 1
        return planned

    def _planned(self, rounds: int) -> Counter[int]:
        """How many visits each client was to make."""
        return Counter(
            client for round in (*self.undone, *range(rounds)) for client in self._cohort(round)
        )

    def _cohort(self, round: int) -> tuple[int, ...]:
        if round not in self._cohorts:
            self._cohorts[round] = tuple(self.schedule.visits(round))
        return self._cohorts[round]


@dataclass(frozen=True)
class LedgerOfRun:
    """A client's ledger in the process that keeps the run's account (see privacy.records.Ledger):
    the run's rounds say what it holds."""

    budget: RecordBudget
    client: int

    def before(self, round: int) -> Spent:
        """The noisy steps before the client's visit in a round."""
        return self.budget.spent(self.client, round)

    def add(self, noise: float, rate: float, steps: int) -> None:
        """The round will be in the account when it is over; before that nothing went out."""
