"""What the clients of a run in this process have that nobody else has, and what they do with it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fullfed.runs.assembly import Assembly
from fullfed.runs.budget import Budget
from fullfed.runs.folder import RunFolder
from fullfed.runs.record_budget import LedgerOfRun

if TYPE_CHECKING:
    from fullfed.privacy.summing import SummingClients


def with_owners(
    assembly: Assembly, folder: RunFolder, run: str, budget: Budget
) -> tuple[Assembly, SummingClients | None]:
    """The assembly whose clients have secrets that follow from the run's, and their part in sums;
    None where the server sees every report.

    Args:
        run: names the run.
        budget: the run's account.
    """
    method = assembly.method
    if method.sums is None and not method.protects_records:
        return assembly, None
    from fullfed.privacy.records import LedgerInMemory
    from fullfed.privacy.summing import SummingClients, owners_of

    records = budget.records
    owner_of = owners_of(
        folder.secret(),
        lambda client: LedgerInMemory() if records is None else LedgerOfRun(records, client),
    )
    owned = replace(assembly, method=method.owned(run, owner_of))
    return owned, None if method.sums is None else SummingClients(method.sums, run, owner_of)
