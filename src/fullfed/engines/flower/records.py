"""Named pieces of bytes as the content of a Flower message, and back.

Each piece is an Array of its own: Flower cuts those into chunks, so that a piece of any size
passes, and sends a chunk that several messages share to its server once.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, RecordDict

from fullfed.errors import MessageError

_RECORD = "fullfed"
_PIECES_LIMIT = 100_000


def content_of(pieces: Mapping[str, bytes]) -> RecordDict:
    """The content of a message."""
    arrays = {
        name: Array(dtype="uint8", shape=(len(piece),), stype=_RECORD, data=piece)
        for name, piece in pieces.items()
    }
    return RecordDict({_RECORD: ArrayRecord(arrays)})


def pieces_of(content: RecordDict) -> dict[str, bytes]:
    """The pieces in a message's content.

    Raises:
        MessageError: it has none.
    """
    record = content.get(_RECORD)
    if not isinstance(record, ArrayRecord) or len(record) > _PIECES_LIMIT:
        raise MessageError("the message is not fullfed's")
    return {name: array.data for name, array in record.items()}
