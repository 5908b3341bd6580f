"""What of a run goes into the audit file of its federation."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from fullfed.deployment.audit import Audit
from fullfed.deployment.members import Members
from fullfed.errors import UserError
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.rollback import targets

_LONGEST = 500  # characters of a reason, which may be a partner's words


def record_start(audit: Audit, folder: RunFolder, members: Members, recipe_hash: str) -> None:
    """A run begins, or goes on: on what recipe, with whom, and from which version.

    Raises:
        UserError: it cannot be recorded; nothing may begin then.
    """
    audit.record(
        "resume" if folder.begun else "start",
        run=members.run,
        folder=str(folder.path),
        recipe=recipe_hash,
        partners=[partner.name for partner in members.clients],
        version=len(folder.metrics()) if folder.begun else 0,
        taken_back_to=list(targets(folder)) if folder.begun else [],
    )


class RunAudit(Callback):
    """Records, while a run goes on, who is refused in it and how it ends.

    As a context it records the UserError that ends what is done inside.
    """

    def __init__(self, audit: Audit, members: Members) -> None:
        self._audit, self._members = audit, members
        self._log = ""

    def on_round_end(self, record: dict[str, Any]) -> None:
        """A line for each client that was refused, or refused its order."""
        self._log = record["log"]
        for refused in record["refused"]:
            partner = self._members.clients[refused["client"]].name
            about = {"run": self._members.run, "round": record["round"], "partner": partner}
            self._audit.record("refuse", **about, reason=refused["reason"][:_LONGEST])

    def on_run_end(self, summary: dict[str, Any]) -> None:
        """The model and the log that the run ends with, by their hashes."""
        about = {"run": self._members.run, "rounds": summary["rounds"]}
        self._audit.record("end", **about, model=summary["model_hash"], log=self._log)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, UserError):
            self._audit.record("stop", run=self._members.run, reason=str(error))
