"""Named frames as Flower messages: their content, and sending and receiving them over the Grid.

A client is known by its public key, which may be replaced; its Flower node may come and go. Flower
can lose a message (the node went away, the app's process died, time ran out) before the node's
worker has answered; that is told apart from what a worker answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fullfed.engines.flower_objects import (
    LongMessageError,
    ObjectPullError,
    pull_message,
    push_message,
)
from fullfed.engines.node_channel import ANSWER_LIMIT
from fullfed.errors import MessageError
from fullfed.payloads import Payload

_RECORD = "fullfed"
_FRAMES_LIMIT = 100_000
_ANSWER_OBJECTS = 100  # of Flower's, at most; an answer has two frames
_REASONS = {  # flwr.common.constant.ErrorCode
    1: "its Flower app does not load",
    2: "its Flower app failed",
    3: "the order or its answer was lost",
    4: "its answer came too late",
    5: "the node went away",
    7: "it does not accept the Flower app",
    8: "its Flower app's process died",
}


def content_of(frames: Mapping[str, Payload]) -> RecordDict:
    """The content of a message.

    Each frame is an Array of its own: Flower cuts those into chunks, so that a frame of any size
    passes, and sends a chunk that several messages share to its server once.
    """
    record = ArrayRecord()
    for name, frame in frames.items():
        record[name] = Array(dtype="uint8", shape=(len(frame),), stype=_RECORD, data=b"")
        record[name].data = frame  # type: ignore[assignment]
    return RecordDict({_RECORD: record})


def frames_of(content: RecordDict) -> dict[str, Payload]:
    """The frames in a message's content.

    Raises:
        MessageError: it has none.
    """
    record = content.get(_RECORD)
    if not isinstance(record, ArrayRecord) or len(record) > _FRAMES_LIMIT:
        raise MessageError("the message is not fullfed's")
    return {name: array.data for name, array in record.items()}


@dataclass(frozen=True)
class Connection:
    """A node by Flower's id, and when it connected, which changes if it goes and comes back."""

    node: int
    since: str


@dataclass(frozen=True)
class SentMessage:
    """A message that may be answered, by Flower's id, and where it was sent."""

    message_id: str
    connection: Connection


@dataclass(frozen=True)
class LostMessage:
    """No reply will come, for the reason given in words."""

    reason: str


class FlowerMessenger:
    """Sends frames to clients and receives replies.

    Args:
        keys: the clients' public keys as they are now, as the SuperLink knows them, in the clients'
            order.
    """

    def __init__(self, grid: Grid, keys: Callable[[], Sequence[bytes]]) -> None:
        self._grid = grid
        self._keys = keys

    def connections(self) -> dict[int, Connection]:
        """Of the clients that are connected."""
        clients = {key: client for client, key in enumerate(self._keys())}
        return {
            clients[node.public_key]: Connection(node.node_id, node.last_activated_at)
            for node in self._grid.get_nodes()
            if node.public_key in clients
        }

    def send(
        self, connection: Connection, frames: Mapping[str, Payload], seconds: float, round: int
    ) -> SentMessage | None:
        """Send frames to be answered within ``seconds``; None if Flower does not take them."""
        node, content = connection.node, content_of(frames)
        message = Message(content, node, message_type="train", ttl=seconds, group_id=str(round))
        message_id = push_message(self._grid, message)
        return SentMessage(message_id, connection) if message_id else None

    def receive(self, sent: SentMessage) -> Message | LostMessage | None:
        """The reply, once; None as long as there is none."""
        try:
            reply = pull_message(self._grid, sent.message_id, ANSWER_LIMIT, _ANSWER_OBJECTS)
        except LongMessageError:
            return LostMessage("its answer is too long")
        except (ValueError, ObjectPullError):
            return LostMessage("its answer did not arrive whole")
        if reply is None:
            return None
        if reply.has_error():
            code = reply.error.code
            reason = _REASONS.get(code, "it did not answer")
            return LostMessage(f"{reason} (Flower's error {code})")
        if reply.metadata.src_node_id != sent.connection.node:
            return LostMessage("another node answered in its place")
        return reply
