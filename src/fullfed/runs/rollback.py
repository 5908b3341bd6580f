"""Taking a run back to an earlier version of its model.

The log is cut at the version, and what later rounds left behind goes: their lines of metrics, their
answers, the account, the summary, the states of clients, and the snapshot if it is of a later
version. What was cut from the log stays in the run's folder, and rollbacks.json says who cut it,
when and why. The nodes of a federation are told by their next orders, and follow.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fullfed.account import account
from fullfed.errors import UserError
from fullfed.federation.log import Log
from fullfed.federation.replica import snapshot_version
from fullfed.files import read_sealed, write_sealed
from fullfed.runs.folder import RunFolder
from fullfed.runs.predictions import forget_predictions
from fullfed.runs.snapshots import newest_snapshot


def roll_back(folder: RunFolder, version: int, why: str = "") -> None:
    """Take a run that nobody carries on now back to a model version; then it can be resumed.

    What a crash interrupts is finished when the run is next resumed or taken back.

    Raises:
        UserError: there is no such run or version, its rounds cannot be repeated, or another
            process is writing it.
    """
    finish_rollback(folder)
    _check_repeatable(folder)
    records = folder.metrics()
    with Log(folder.log_file, folder.digests()) as log:
        _check_target(folder, log, version)
        earlier = rollbacks(folder)
        record = {
            "version": version,
            "from": len(log),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "who": account(),
            "why": why,
            "cut": f"rolled-back-{len(earlier) + 1}.log",
            "metrics": [r for r in records if r["round"] >= version],
        }
        write_sealed(folder.rollback_file, {"record": record}, folder.run())
    finish_rollback(folder)


def finish_rollback(folder: RunFolder) -> None:
    """Carry out a rollback that was begun, whatever of it has been done; nothing if none was.

    Raises:
        UserError: another process is writing the run, or a file was changed.
    """
    if not folder.rollback_file.exists():
        return
    record = read_sealed(folder.rollback_file, "", folder.run())["record"]
    version, kept = record["version"], folder.path / record["cut"]
    with Log(folder.log_file, [str(line["log"]) for line in folder.lines()]) as log:
        folder.summary_file.unlink(missing_ok=True)
        for file in (folder.snapshot_file, folder.best_file):
            if file.exists() and snapshot_version(file) > version:
                file.unlink()
        folder.states().forget(version)
        folder.account_file.unlink(missing_ok=True)
        folder.rewrite_metrics([r for r in folder.lines() if r["round"] < version])
        forget_predictions(folder, version)
        if len(log) > version:
            log.cut(version, kept)
        earlier = [r for r in rollbacks(folder) if r["cut"] != record["cut"]]
        write_sealed(folder.rollbacks_file, {"rollbacks": [*earlier, record]}, folder.run())
        folder.rollback_file.unlink()


def rollbacks(folder: RunFolder) -> list[dict[str, Any]]:
    """The records of all rollbacks, in their order.

    Raises:
        UserError: the file was changed.
    """
    if not folder.rollbacks_file.exists():
        return []
    return list(read_sealed(folder.rollbacks_file, "", folder.run())["rollbacks"])


def targets(folder: RunFolder) -> tuple[int, ...]:
    """The versions that the run was taken back to, in their order."""
    return tuple(record["version"] for record in rollbacks(folder))


def _check_target(folder: RunFolder, log: Log, version: int) -> None:
    """
    Raises:
        UserError: there is no such version before the newest, or the run has it no more.
    """
    if not len(log):
        raise UserError(
            f"{folder.path}: no round of the run is over; there is nothing to take back."
        )
    earliest = snapshot_version(newest_snapshot(folder)) if log.first else 0
    if not earliest <= version < len(log):
        raise UserError(
            f"{folder.path}: the run is at version {len(log)} and cannot go back to {version}; "
            f"name a version from {earliest} to {len(log) - 1}."
            if earliest < len(log)
            else f"{folder.path}: the run kept no update before version {earliest} "
            "(federation.keep_updates), which is its newest; there is nothing to take back."
        )


def _check_repeatable(folder: RunFolder) -> None:
    """
    Raises:
        UserError: rounds of the run may not be done again.
    """
    privacy = folder.recipe().privacy
    if privacy is not None and privacy.only_sums:
        raise UserError(
            f"{folder.path}: two sums of one round, of different clients, would show their "
            "difference, so a round is not repeated; export the model with `fullfed export "
            "--round` and begin a new run with it."
        )
