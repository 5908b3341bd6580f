"""Taking a run back to an earlier version of its model.

The log is cut at the version, and what later rounds left behind goes: their lines of metrics, the
account, the summary, the states of clients, and the snapshot if it is of a later version. What was
cut from the log stays in the run's folder, and rollbacks.json says who cut it, when and why. The
nodes of a federation are told by their next orders, and follow.
"""

from __future__ import annotations

import getpass
import json
import socket
from datetime import UTC, datetime

from fullfed.errors import UserError
from fullfed.federation.client import StatesOnDisk
from fullfed.federation.log import Log
from fullfed.federation.replica import snapshot_version
from fullfed.files import write_json
from fullfed.runs.folder import RunFolder


def roll_back(folder: RunFolder, version: int, why: str = "") -> None:
    """Take a run that nobody carries on now back to a model version; then it can be resumed.

    Every step leaves a run that can be resumed, and the cut of the log is one of them. A crash
    before it leaves the rounds in place, a crash after it nothing of them that would count.

    Raises:
        UserError: there is no such run or version, or another process is writing it.
    """
    folder.recipe()  # complains where there is no run
    with Log(folder.log_file) as log:
        if not 0 <= version < len(log):
            raise UserError(
                f"{folder.path}: the run is at version {len(log)} and cannot go back to {version}; "
                f"name a version from 0 to {len(log) - 1}."
                if len(log)
                else f"{folder.path}: no round of the run is over; there is nothing to take back."
            )
        records = folder.metrics()
        earlier = rollbacks(folder)
        kept = folder.path / f"rolled-back-{len(earlier) + 1}.log"
        record = {
            "version": version,
            "from": len(log),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "who": f"{_user()} at {socket.gethostname()}",
            "why": why,
            "cut": kept.name,
            "metrics": [r for r in records if r["round"] >= version],
        }
        write_json(folder.rollbacks_file, [*earlier, record])
        folder.summary_file.unlink(missing_ok=True)
        if folder.snapshot_file.exists() and snapshot_version(folder.snapshot_file) > version:
            folder.snapshot_file.unlink()
        StatesOnDisk(folder.states_folder).forget(version)
        log.cut(version, kept)
        folder.account_file.unlink(missing_ok=True)
        folder.rewrite_metrics([r for r in records if r["round"] < version])


def rollbacks(folder: RunFolder) -> list[dict[str, object]]:
    """The records of all rollbacks, in their order.

    Raises:
        UserError: the file was changed.
    """
    file = folder.rollbacks_file
    if not file.exists():
        return []
    try:
        found = json.loads(file.read_bytes())
        sound = all(type(record["version"]) is int for record in found)
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise UserError(f"{file}: this is not what the run wrote; restore a copy of it.")
    return list(found)


def targets(folder: RunFolder) -> tuple[int, ...]:
    """The versions that the run was taken back to, in their order."""
    return tuple(int(str(record["version"])) for record in rollbacks(folder))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in some containers
        return "an unnamed user"
