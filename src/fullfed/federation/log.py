"""The append-only log of updates: with base model and scales, it is the whole run.

A file of records. Each is a 48-byte head and then the payload. The head is the
payload's length (8 bytes, little endian), a check of the length (the first 8 bytes
of the SHA-256 of the previous record's digest followed by the length) and the
digest (the SHA-256 of the previous record's digest followed by the payload). The
digests form a chain, so a record can be neither altered nor taken out unnoticed;
the checks tell a length that was damaged from a record that was cut short. A
record is durable when ``append`` returns; an append that a crash interrupts leaves
a torn tail, which is cut off when the log is next opened for writing.

Whoever keeps the digests of records that were appended can have them back: a log
that does not begin with these records is damaged, wherever it ends.

The first records can be left out, where a snapshot has what they led to. Then the file begins
with how many they were and the digest of the last of them, which the chain goes on from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fullfed.errors import UserError
from fullfed.files import lock, sync_folder, unlock
from fullfed.payloads import Payload, view

MAGIC = b"fullfed-log-1\n"
_MAGIC_OF_REST = b"fullfed-log-2\n"  # of a log whose first records are left out
_WITHOUT_FIRST = struct.Struct("<14sQ32s")  # that, how many they are, the digest of the last
_HEAD = struct.Struct("<Q8s32s")
_PART = 1 << 20  # bytes of a payload that are hashed at once


class Log:
    """A log on disk, opened for appending by one process.

    Args:
        path: the file; created if it does not exist.
        known: digests, in hexadecimal, of the first records, which must be there.
        begin: what the chain of digests begins with: a log that begins otherwise is damaged.

    Raises:
        UserError: the file is not a log, is damaged before its tail, lacks a known record, is in
            use or cannot be opened.
    """

    def __init__(self, path: Path, known: Sequence[str] = (), begin: bytes = b"") -> None:
        self._path = path
        if known and not path.exists():
            raise _missing(path)
        self._file = _open(path)
        self._begin = begin
        self._first = 0
        self._records: list[tuple[int, int, bytes]] = []  # a payload's start, length and digest
        try:
            self._find_records(known)
        except BaseException:
            self._file.close()
            raise

    def _find_records(self, known: Sequence[str]) -> None:
        self._file.seek(0)
        begin = self._file.read(len(MAGIC) + 1)
        # Where its creation was interrupted, the rest may be missing or zeros.
        new = len(begin) <= len(MAGIC) and MAGIC.startswith(begin.rstrip(b"\0"))
        if new and begin != MAGIC and not known:
            self._file.seek(0)
            self._file.write(MAGIC)
            self._sync()
            sync_folder(self._path.parent)
        self._first, self._begin, end = _beginning(self._file, self._begin)
        for start, length, digest in _scan(self._file, self._path, known, self._begin):
            self._records.append((start, length, digest))
            end = start + length
        self._file.truncate(end)
        self._file.seek(end)

    def __len__(self) -> int:
        """The number of whole records, those that were left out included."""
        return self._first + len(self._records)

    @property
    def first(self) -> int:
        """The first record that is here; those before it were left out."""
        return self._first

    def size(self, index: int) -> int:
        """Bytes of the payload of a record that is here."""
        return self._records[index - self._first][1]

    @property
    def sizes(self) -> list[int]:
        """Bytes of the payloads of all records that are here."""
        return [length for _, length, _ in self._records]

    @property
    def _digest(self) -> bytes:
        return self._records[-1][2] if self._records else self._begin

    @property
    def digest(self) -> str:
        """The last record's digest, in hexadecimal."""
        return self._digest.hex()

    def digest_after(self, payload: Payload) -> str:
        """The digest that a record of ``payload`` would have next, in hexadecimal."""
        return _digest(self._digest, [payload]).hex()

    def append(self, payload: Payload) -> None:
        """Add one record; when this returns it survives a power cut.

        Raises:
            UserError: it could not be written (a full disk); the log is as it was before.
        """
        end = self._file.tell()
        digest = _digest(self._digest, [payload])
        try:
            check = _check(self._digest, len(payload))
            self._file.write(_HEAD.pack(len(payload), check, digest))
            self._file.write(payload)
            self._sync()
        except OSError as error:
            self._reset(end)
            raise UserError(
                f"{self._path}: an update could not be appended ({error.strerror}); "
                "free some space and resume the run."
            ) from error
        self._records.append((end + _HEAD.size, len(payload), digest))

    def _reset(self, end: int) -> None:
        """Drop what a failed write left, in the file and in its buffer."""
        with suppress(OSError):
            self.close()  # flushes what the disk had no room for, and may find room now
        os.truncate(self._path, end)
        self._file = _open(self._path)
        self._file.seek(end)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def read(self, index: int) -> Payload:
        """The payload of one record."""
        start, length, _ = self._records[index - self._first]
        return view(self._file, start, length)

    def cut(self, records: int, kept: Path) -> None:
        """Leave only the first records; what follows goes to the file ``kept``, whose bytes after
        those of the log make the log that there was. Interrupted, the log is as it was.

        Raises:
            UserError: ``kept`` cannot be written.
        """
        end = self._records[records - self._first][0] - _HEAD.size
        self._file.seek(end)
        try:
            with kept.open("wb") as copy:
                shutil.copyfileobj(self._file, copy)
                copy.flush()
                os.fsync(copy.fileno())
            sync_folder(kept.parent)
        except OSError as error:
            kept.unlink(missing_ok=True)
            raise UserError(
                f"{kept}: cannot be written ({error.strerror}); free some space and try again."
            ) from error
        self._file.truncate(end)
        self._sync()
        self._file.seek(end)
        del self._records[records - self._first :]

    def leave_out(self, before: int) -> None:
        """Leave out the records before one, for good. Interrupted, the log is as it was.

        Raises:
            UserError: the rest cannot be written.
        """
        dropped = self._records[: max(before - self._first, 0)]
        if not dropped:
            return
        start, length, digest = dropped[-1]
        self._file.seek(start + length)
        fresh = self._path.with_suffix(".partial")
        try:
            rest = _open(fresh)
            rest.write(_WITHOUT_FIRST.pack(_MAGIC_OF_REST, before, digest))
            shutil.copyfileobj(self._file, rest)
            rest.flush()
            os.fsync(rest.fileno())
            fresh.replace(self._path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            self._file.seek(0, os.SEEK_END)
            raise UserError(
                f"{fresh}: cannot be written ({error.strerror}); free some space and resume the "
                "run."
            ) from error
        sync_folder(self._path.parent)
        self._file.close()
        self._file, self._records = rest, []
        self._find_records(())

    def close(self) -> None:
        """Let others write the log; payloads that were read stay what they are."""
        unlock(self._file)
        self._file.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _open(path: Path) -> BinaryIO:
    """The file, for reading and writing, locked against other processes until it is closed."""
    try:
        file = path.open("r+b" if path.exists() else "w+b")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be opened ({error.strerror}); check the folder and its permissions."
        ) from error
    used = f"{path}: another process is writing this run; wait for it."
    lock(file, used)
    if not os.path.samestat(os.fstat(file.fileno()), path.stat()):  # it put another in its place
        file.close()
        raise UserError(used)
    return file


def read_log(path: Path, known: Sequence[str] = ()) -> Iterator[Payload]:
    """The payloads of a log, without opening it for writing; a torn tail is passed over.

    Args:
        known: as for ``Log``.

    Raises:
        UserError: the file is missing, is not a log, lacks a known record, or is damaged before
            its tail.
    """
    if not path.is_file():
        raise _missing(path)
    with path.open("rb") as file:
        for start, length, _ in _scan(file, path, known):
            yield view(file, start, length)


def first_record(path: Path) -> int:
    """The first record that a log has; 0 unless some were left out.

    Raises:
        UserError: the file is missing, or is not a log.
    """
    if not path.is_file():
        raise _missing(path)
    with path.open("rb") as file:
        return _beginning(file).first


def count_records(path: Path) -> int:
    """How many records a log has by their lengths alone, a last one of wrong content included."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        size, (count, _, position) = os.fstat(file.fileno()).st_size, _beginning(file)
        while position + _HEAD.size <= size:
            file.seek(position)
            length, _, _ = _HEAD.unpack(file.read(_HEAD.size))
            position += _HEAD.size + length
            count += position <= size
    return count


def _scan(
    file: BinaryIO, path: Path, known: Sequence[str] = (), begin: bytes = b""
) -> Iterator[tuple[int, int, bytes]]:
    """(start, length, digest) of each whole record.

    After the known records, a record that runs past the end of the file, or ends there and does
    not match its digest, is a torn tail, and so are zeros up to the end. What fails earlier is
    damage, because appends only ever tear the end.
    """
    file.seek(0)
    if file.read(len(MAGIC)) not in (MAGIC, _MAGIC_OF_REST):
        raise UserError(f"{path}: this is not a fullfed log; name a run's folder.")
    found, previous, position = _beginning(file, begin)
    if found and known and previous.hex() not in known[found - 1 : found]:
        raise _foreign(path, found - 1)
    size = os.fstat(file.fileno()).st_size
    while position + _HEAD.size <= size:
        file.seek(position)
        length, check, digest = _HEAD.unpack(file.read(_HEAD.size))
        start = position + _HEAD.size
        if check != _check(previous, length):
            file.seek(position)
            if not any(file.read()):
                break
            raise _damage(path, position)
        if start + length > size:
            break
        if _digest(previous, _parts(file, length)) != digest:
            if start + length == size:
                break
            raise _damage(path, position)
        if found < len(known) and digest.hex() != known[found]:
            raise _foreign(path, found)
        yield start, length, digest
        position, previous, found = start + length, digest, found + 1
    if found < len(known):
        raise UserError(
            f"{path}: the log is damaged at byte {position}: {len(known)} records were written and "
            f"{found} are whole; restore a copy of it."
        )


class _Beginning(NamedTuple):
    """How a log begins: with which record, what the chain goes on from, and where records are."""

    first: int
    digest: bytes
    position: int


def _beginning(file: BinaryIO, begin: bytes = b"") -> _Beginning:
    """
    Args:
        begin: what the chain of a whole log begins with.
    """
    file.seek(0)
    left_out = file.read(_WITHOUT_FIRST.size)
    if left_out.startswith(_MAGIC_OF_REST) and len(left_out) == _WITHOUT_FIRST.size:
        _, first, digest = _WITHOUT_FIRST.unpack(left_out)
        return _Beginning(first, digest, len(left_out))
    return _Beginning(0, begin, len(MAGIC))


def _check(previous: bytes, length: int) -> bytes:
    return hashlib.sha256(previous + struct.pack("<Q", length)).digest()[:8]


def _digest(previous: bytes, payload: Iterable[Payload]) -> bytes:
    """
    Args:
        payload: in parts.
    """
    digest = hashlib.sha256(previous)
    for part in payload:
        digest.update(part)
    return digest.digest()


def _parts(file: BinaryIO, length: int) -> Iterator[bytes]:
    """So many bytes of a file, a part at a time."""
    while length and (part := file.read(min(length, _PART))):
        yield part
        length -= len(part)


def _damage(path: Path, position: int) -> UserError:
    return UserError(f"{path}: the log is damaged at byte {position}; restore a copy of it.")


def _foreign(path: Path, number: int) -> UserError:
    return UserError(
        f"{path}: record {number} is not the one that the run wrote; restore a copy of the log "
        "that belongs to the other files here."
    )


def _missing(path: Path) -> UserError:
    return UserError(f"{path}: there is no log here; name a run's folder, or restore a copy of it.")
