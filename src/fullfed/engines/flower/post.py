"""Letters to nodes over Flower's Grid, and their replies.

A node is known by its public key: its Flower node may come and go. Flower can lose a letter without
the node's worker having had a word in it, because the node went away, the app's process died, or
time ran out; that is told apart from what a worker answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fullfed.engines.flower.records import content_of

_LOSSES = {  # flwr.common.constant.ErrorCode
    1: "its Flower app does not load",
    2: "its Flower app failed",
    3: "the order or its answer was lost",
    4: "its answer came too late",
    5: "the node went away",
    7: "it does not accept the Flower app",
    8: "its Flower app's process died",
}


@dataclass(frozen=True)
class Station:
    """Where a client is reached.

    Attributes:
        node: Flower's.
        since: when it connected; changes when it went away and came back.
    """

    node: int
    since: str


@dataclass(frozen=True)
class Letter:
    """What was sent to a node and may be answered.

    Attributes:
        name: Flower's.
        station: where it was sent.
    """

    name: str
    station: Station


@dataclass(frozen=True)
class Loss:
    """No answer will come to a letter.

    Attributes:
        reason: in words.
    """

    reason: str


class Post:
    """
    Args:
        grid: Flower's.
        keys: the clients' public keys, as the SuperLink knows them, in the clients' order.
    """

    def __init__(self, grid: Grid, keys: Sequence[bytes]) -> None:
        self._grid = grid
        self._clients = {key: client for client, key in enumerate(keys)}

    def stations(self) -> dict[int, Station]:
        """The connected clients'."""
        return {
            self._clients[node.public_key]: Station(node.node_id, node.last_activated_at)
            for node in self._grid.get_nodes()
            if node.public_key in self._clients
        }

    def send(
        self, station: Station, pieces: Mapping[str, bytes], seconds: float, group: str
    ) -> Letter | None:
        """Send pieces that may be answered within ``seconds``; None if Flower does not take them.

        Args:
            group: what Flower's logs call the round.
        """
        content = content_of(pieces)
        message = Message(content, station.node, message_type="train", ttl=seconds, group_id=group)
        names = list(self._grid.push_messages([message]))
        return Letter(names[0], station) if names and names[0] else None

    def receive(self, letter: Letter) -> Message | Loss | None:
        """The reply, once; None as long as there is none."""
        for reply in self._grid.pull_messages([letter.name]):
            if reply.has_error():
                code = reply.error.code
                return Loss(f"{_LOSSES.get(code, 'it did not answer')} (Flower's error {code})")
            if reply.metadata.src_node_id != letter.station.node:
                return Loss("another node answered in its place")
            return reply
        return None
