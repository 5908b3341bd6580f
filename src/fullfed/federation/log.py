"""The append-only log of updates: with the base model, it is the whole run.

A file of records. Each is a 40-byte head, the payload's length (8 bytes, little
endian) and a 32-byte SHA-256 of the previous record's digest followed by the
payload, and then the payload. The digests form a chain, so a record can be
neither altered nor taken out unnoticed. A record is durable when ``append``
returns; an append that a crash interrupts leaves a torn tail, which is cut off
when the log is next opened for writing.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from fullfed.errors import UserError

MAGIC = b"fullfed-log-1\n"
_HEAD = struct.Struct("<Q32s")


class Log:
    """A log on disk, opened for appending by one process.

    Args:
        path: the file; created if it does not exist.

    Raises:
        UserError: the file is not a log, or is damaged before its tail.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        self._records: list[tuple[int, int]] = []
        self._digest = b""
        if not self._begins_with_magic():
            self._file.truncate(0)
            self._file.seek(0)
            self._file.write(MAGIC)
            self._sync()
        end = len(MAGIC)
        for start, length, digest in _scan(self._file, path):
            self._records.append((start, length))
            self._digest, end = digest, start + length
        self._file.truncate(end)
        self._file.seek(end)

    def _begins_with_magic(self) -> bool:
        """False for a new file or one whose creation was interrupted."""
        begin = self._file.read(len(MAGIC))
        if begin == MAGIC:
            return True
        if MAGIC.startswith(begin):
            return False
        raise UserError(f"{self._path}: this is not a fullfed log; name a run's folder.")

    def __len__(self) -> int:
        """The number of whole records."""
        return len(self._records)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each record's payload."""
        return [length for _, length in self._records]

    def append(self, payload: bytes) -> None:
        """Add one record; when this returns it survives a power cut.

        Raises:
            UserError: it could not be written (a full disk); the log is as it was before.
        """
        end = self._file.tell()
        digest = hashlib.sha256(self._digest + payload).digest()
        try:
            self._file.write(_HEAD.pack(len(payload), digest))
            self._file.write(payload)
            self._sync()
        except OSError as error:
            self._reset(end)
            raise UserError(
                f"{self._path}: an update could not be appended ({error.strerror}); "
                "free some space and resume the run."
            ) from error
        self._records.append((end + _HEAD.size, len(payload)))
        self._digest = digest

    def _reset(self, end: int) -> None:
        """Drop what a failed write left; raw, because the buffer may hold unwritten bytes."""
        os.ftruncate(self._file.fileno(), end)
        raw = self._path.open("r+b")
        raw.seek(end)
        try:
            self._file.close()
        except OSError:
            # Closing flushes what the disk had no room for; those bytes are to be dropped.
            os.ftruncate(raw.fileno(), end)
        self._file = raw

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def read(self, index: int) -> bytes:
        """The payload of one record."""
        start, length = self._records[index]
        end = self._file.tell()
        self._file.seek(start)
        payload = self._file.read(length)
        self._file.seek(end)
        return payload

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_log(path: Path) -> Iterator[bytes]:
    """The payloads of a log, without opening it for writing; a torn tail is passed over.

    Raises:
        UserError: the file is missing, is not a log, or is damaged before its tail.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no log here; name a run's folder.")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{path}: this is not a fullfed log; name a run's folder.")
        for start, length, _ in _scan(file, path):
            file.seek(start)
            yield file.read(length)


def _scan(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(start, length, digest) of each whole record.

    A record that ends at or past the end of the file and does not match its digest is a torn
    tail; one that fails earlier is damage, because appends only ever tear the end.
    """
    size = os.fstat(file.fileno()).st_size
    position, previous = len(MAGIC), b""
    while position + _HEAD.size <= size:
        file.seek(position)
        length, digest = _HEAD.unpack(file.read(_HEAD.size))
        start = position + _HEAD.size
        if start + length > size:
            return
        if hashlib.sha256(previous + file.read(length)).digest() != digest:
            if start + length == size:
                return
            raise UserError(f"{path}: the log is damaged at byte {position}; restore a copy of it.")
        yield start, length, digest
        position, previous = start + length, digest
