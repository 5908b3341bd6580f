"""A run's snapshots, and what they make dispensable: the updates that led to them.

snapshot.safetensors is the model of the newest round that ``federation.snapshot_every`` names.
Where the recipe keeps updates only since then (``federation.keep_updates``), the log begins with
the update that led to the snapshot, and best.safetensors is the model that measured best so far,
which may be an older one. Both have the hash that their rounds' lines of metrics.jsonl have.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fullfed.errors import UserError
from fullfed.federation.log import Log, first_record
from fullfed.federation.replica import Replica, snapshot_version
from fullfed.runs.best import best_version
from fullfed.runs.folder import RunFolder


def take_snapshot(folder: RunFolder, replica: Replica, log: Log) -> None:
    """Keep the model as it is now; only then leave out of the log what led to it."""
    replica.save_snapshot(folder.snapshot_file, folder.run())
    leave_out(folder, replica, log)


def leave_out(folder: RunFolder, replica: Replica, log: Log) -> None:
    """Keep of the updates that led to the snapshot the last one only, if the recipe says so.

    Args:
        replica: holds the snapshot's model.
    """
    if folder.recipe().federation.keep_updates == "since-snapshot":
        log.leave_out(before=replica.version - 1)


def unkept_best(folder: RunFolder, log: Log) -> int | None:
    """The version that measured best, unless the log will have it, or best.safetensors has it; nor
    the base model."""
    recipe = folder.recipe()
    if recipe.federation.keep_updates == "all" and log.first == 0:
        return None
    best = best_version(folder.base(), folder.metrics(), recipe.evaluation)
    kept = folder.best_file.exists() and snapshot_version(folder.best_file) == best
    return None if kept or best == 0 else best


def keep_best(folder: RunFolder, replica: Replica, best: int | None) -> None:
    """Keep the model as it is now if it is the one of ``unkept_best``."""
    if replica.version == best:
        replica.save_snapshot(folder.best_file, folder.run())


def newest_snapshot(folder: RunFolder) -> Path:
    """The file of the newest snapshot, without which a log that was cut leads to nothing.

    Raises:
        UserError: it is missing.
    """
    if not folder.snapshot_file.exists():
        raise UserError(f"{folder.snapshot_file}: the file is missing; restore a copy of it.")
    return folder.snapshot_file


def load_snapshot(folder: RunFolder, replica: Replica, file: Path) -> None:
    """Take a replica to the model of one of the run's snapshots.

    Raises:
        UserError: it is not the model that the run had at that version.
    """
    replica.load_snapshot(file, folder.run())
    recorded = recorded_hashes(folder).get(replica.version)
    if recorded is not None and recorded != replica.content_hash():
        raise UserError(
            f"{file}: this is not the model that the run had at version {replica.version}; delete "
            "it, or where updates before it are not kept restore a copy, and resume."
        )


def recorded_hashes(folder: RunFolder) -> Mapping[int, str]:
    """The models' hashes that the run wrote down, by version."""
    return {r["round"] + 1: r["model_hash"] for r in folder.metrics() if r["model_hash"]}


def go_towards(folder: RunFolder, replica: Replica, version: int | None) -> None:
    """Take a replica of the base model to where the log can take it on to a version.

    Args:
        version: None for the newest.

    Raises:
        UserError: neither the log nor a snapshot has that model.
    """
    first, newest = first_record(folder.log_file), len(folder.metrics())
    wanted = newest if version is None else version
    if first == 0 or wanted == 0:
        return
    if replica.method.cumulative and wanted > first:
        return
    here = {snapshot_version(newest_snapshot(folder)): folder.snapshot_file}
    if folder.best_file.exists():
        here.setdefault(snapshot_version(folder.best_file), folder.best_file)
    usable = [held for held in here if held == wanted or first <= held <= wanted]
    if not usable:
        kept = ", ".join(map(str, sorted({0, *here})))
        raise UserError(
            f"{folder.path}: the run kept only the updates since its newest snapshot "
            f"(federation.keep_updates); name one of the rounds {kept}, or one from "
            f"{max(here)} to {newest}."
        )
    load_snapshot(folder, replica, here[max(usable)])
