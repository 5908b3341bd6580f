"""The bytes of messages. Those of large ones are in a file, not in memory.

A payload is ``bytes``, or a view of a file that is mapped into memory, which reads alike. The pages
of such a file are the system's to drop and read again, so that a message as large as the model
takes no memory that anything else needs. The file has no name: it goes with the last view of it,
or with the process. TMPDIR says in which folder it is; one in memory saves nothing.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from typing import IO

from fullfed.errors import UserError

Payload = bytes | memoryview

LARGE = 128 << 20  # bytes of the longest payload that is in memory


def is_large(nbytes: int) -> bool:
    """Whether a payload of so many bytes is in a file."""
    return nbytes > LARGE


def joined(parts: Iterable[Payload], nbytes: int) -> Payload:
    """The payload of ``nbytes`` that the parts make up.

    Raises:
        UserError: there is no room in the folder of temporary files.
    """
    if not is_large(nbytes):
        return b"".join(parts)
    try:
        with tempfile.TemporaryFile() as file:
            file.writelines(parts)
            return view(file, 0, nbytes)
    except OSError as error:
        raise UserError(
            f"a message could not be written to the folder of temporary files ({error.strerror}); "
            "let TMPDIR name one with room for several copies of the model."
        ) from error


def view(file: IO[bytes], start: int, length: int) -> Payload:
    """A part of a file, which must not be cut off while the payload is used."""
    file.flush()
    if not is_large(length):
        end = file.tell()
        file.seek(start)
        part = file.read(length)
        file.seek(end)
        return part
    # Writable, because torch makes no tensors of what is not; the file itself stays as it is.
    mapped = mmap.mmap(file.fileno(), start + length, access=mmap.ACCESS_COPY)
    return memoryview(mapped)[start : start + length]
