"""What a run's rounds have cost of its privacy budget, and whether another one fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fullfed.config_privacy import PrivacyTable
from fullfed.methods.composition import Composition
from fullfed.methods.private_training import PrivateTraining
from fullfed.methods.summed import SummedComposition
from fullfed.runs.folder import RunFolder
from fullfed.runs.record_budget import RecordBudget
from fullfed.runs.rollback import rollbacks


@dataclass(frozen=True)
class Budget:
    """The account of a run; without noise it says nothing and never ends.

    Args:
        table: the recipe's.
        method: the run's.
        undone: rounds that were over and then taken back: what they told is told.
        records: the clients' own accounts, where records are protected.
    """

    table: PrivacyTable | None
    method: Composition
    undone: Sequence[int] = ()
    records: RecordBudget | None = None

    @staticmethod
    def of(
        folder: RunFolder,
        table: PrivacyTable | None,
        method: Composition,
        samples: Mapping[int, int],
    ) -> Budget:
        """That of the run in a folder.

        Args:
            samples: how many clients have, as far as it is known.
        """
        back = rollbacks(folder) if folder.begun else []
        undone = [round for one in back for round in range(one["version"], one["from"])]
        records = None
        if isinstance(method.local, PrivateTraining):
            records = RecordBudget(method.local, method.schedule, samples, undone)
        return Budget(table, method, undone, records)

    def spent(self, rounds: int) -> dict[str, float | None]:
        """Epsilon, by its name in a round's line, when so many rounds are over."""
        if self.records is not None:
            return {"epsilon": self.records.epsilon(rounds)}
        method = self.method
        if not isinstance(method, SummedComposition) or method.mechanism is None:
            return {}
        return {"epsilon": method.mechanism.account.epsilon(rounds + len(self.undone))}

    def allows(self, rounds: int) -> bool:
        """Whether so many rounds stay within it."""
        if self.records is not None:
            return self.records.is_anybody_left(rounds)
        most = None if self.table is None else self.table.epsilon
        epsilon = self.spent(rounds).get("epsilon")
        return most is None or epsilon is None or epsilon <= most


def privacy_text(table: PrivacyTable | None, rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """What readers of a run or its model are to know, a sentence each; empty without the table."""
    if table is None:
        return []
    lines = []
    if table.secure_sum:
        lines.append("The server learned sums of the clients' reports alone.")
    if table.protects is None or not rounds:
        return lines
    spent = rounds[-1].get("epsilon")
    if spent is None and table.epsilon is not None:  # each client sees to it
        lines.append(
            f"Differential privacy of every {table.protects}: epsilon at most {table.epsilon:g} at "
            f"delta {table.delta:g}."
        )
    elif spent is not None:
        lines.append(
            f"Differential privacy of every {table.protects}: epsilon {spent:.3g} at delta "
            f"{table.delta:g}."
        )
    return lines
