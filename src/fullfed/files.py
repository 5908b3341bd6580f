"""Writing files so that a crash leaves the old content or the new, never half."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fullfed.errors import UserError


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace the file at ``path`` by ``data``, durably; ``mode`` as for os.open.

    Raises:
        UserError: the disk is full or the folder cannot be written; the old file is intact.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free some space or name another folder."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Replace the file at ``path`` by ``value`` as indented JSON; see write_atomically."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def lock(file: BinaryIO, otherwise: str) -> None:
    """Lock an open file against other processes, until it is closed or this process ends.

    Raises:
        UserError: another process has locked it; says ``otherwise``. The file is closed.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UserError(otherwise) from error


@contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Hold the lock of the file at ``path``, which is made if it is not there; see lock."""
    with path.open("ab") as file:
        lock(file, otherwise)
        yield


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries (names of new files) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
