"""Writing files so that a crash leaves the old content or the new, never half; and sealing them.

A sealed object is a JSON object with its SHA-256 in it. Whoever reads it gets what was written or
a UserError. The checksum can cover what the object follows (a name, another object's checksum), so
that an object of another place does not pass for it. It finds damage and mistakes; it is no
signature, and whoever means to deceive can compute it anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fullfed.errors import UserError
from fullfed.payloads import Payload
from fullfed.strict_json import parse_json


def write_atomically(path: Path, data: Payload | Iterable[Payload], mode: int = 0o666) -> None:
    """Replace the file at ``path`` by ``data``, durably, which may come in parts; ``mode`` as for
    os.open.

    Raises:
        UserError: the disk is full or the folder cannot be written; the old file is intact.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.writelines([data] if isinstance(data, Payload) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free some space or name another folder."
        ) from error


@contextmanager
def private_files() -> Iterator[None]:
    """Inside, whatever this process and those it starts create is for this user alone: files of
    mode 0600, folders of mode 0700."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def write_json(path: Path, value: Any) -> None:
    """Replace the file at ``path`` by ``value`` as indented JSON; see write_atomically."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def seal(value: Mapping[str, Any], follows: str = "") -> dict[str, Any]:
    """The JSON object with its ``checksum``, which covers ``follows`` as well."""
    body = {key: item for key, item in value.items() if key != "checksum"}
    return {**body, "checksum": _checksum(body, follows)}


def unseal(data: bytes, path: Path, follows: str = "") -> dict[str, Any]:
    """The sealed JSON object in ``data``, with its ``checksum``.

    Args:
        path: where it was read, for the error.
        follows: what it was sealed with.

    Raises:
        UserError: it is not what was sealed.
    """
    try:
        value = parse_json(data)
        body = {key: item for key, item in value.items() if key != "checksum"}
        sound = value["checksum"] == _checksum(body, follows)
    except (ValueError, TypeError, AttributeError, KeyError):
        sound = False
    if not sound:
        raise UserError(f"{path}: this is not what the run wrote; restore a copy of it.")
    sealed: dict[str, Any] = value
    return sealed


def _checksum(body: Mapping[str, Any], follows: str) -> str:
    """Of the values, however they are spaced and ordered."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{follows}\n{text}".encode()).hexdigest()


def write_sealed(path: Path, value: Mapping[str, Any], follows: str = "") -> None:
    """Replace the file at ``path`` by a sealed object; see seal and write_atomically."""
    write_json(path, seal(value, follows))


def read_sealed(path: Path, absent: str, follows: str = "") -> dict[str, Any]:
    """The sealed object in a file, with its ``checksum``.

    Args:
        absent: what to say where there is no file.

    Raises:
        UserError: there is no file, it cannot be read, or it is not what was sealed.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(absent) from error
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from error
    return unseal(data, path, follows)


def lock(file: BinaryIO, otherwise: str | None) -> None:
    """Lock an open file against other processes, until it is closed or this process ends.

    Args:
        otherwise: what to say where another process has locked it; None to wait for that one.

    Raises:
        UserError: another process has locked it. The file is closed.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if otherwise is None else fcntl.LOCK_NB))
    except OSError as error:
        file.close()
        raise UserError(otherwise) from error


def unlock(file: BinaryIO) -> None:
    """Give up a lock before the file is closed: a file that is mapped into memory as well would
    keep it."""
    fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def locked(path: Path, otherwise: str | None) -> Iterator[None]:
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
