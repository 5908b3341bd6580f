"""What the clients of a run in this process have that nobody else has, and what they do with it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fullfed.engines.node_messages import encode_settings, named
from fullfed.runs.assembly import Assembly
from fullfed.runs.budget import Budget
from fullfed.runs.folder import RunFolder
from fullfed.runs.record_budget import LedgerOfRun

if TYPE_CHECKING:
    from fullfed.privacy.summing import SummingClients


def name_of(assembly: Assembly, folder: RunFolder, name: str | None = None) -> str:
    """Names a run and what its clients were told of it.

    Args:
        name: of the run, where its folder does not say it.
    """
    clients, scales = assembly.method.setting.clients, folder.scales_hash
    settings = encode_settings(assembly.recipe, clients, base_hash="", scales_hash=scales)
    return named(name or folder.run(), settings)


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
