"""A node's link to the server: takes orders, has the worker answer them, sends the answers.

``python -m fullfed.deployment.relay FOLDER [NODE]``; NODE is Flower's number of the node that an
earlier relay has been and could not take leave of. This takes the place of Flower's SuperNode,
which loads and runs the code of whatever app the server names: here nothing that comes from the
server is ever run. What the partner has to know is printed, a sentence a line, after TOLD.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flwr.app import Error, Message

from fullfed.deployment.flower_internals import (
    HEARTBEAT_SECONDS,
    EndedRunError,
    Fleet,
    LostConnectionError,
    TooLongError,
    TurnedAwayError,
)
from fullfed.deployment.folders import NodeFolder
from fullfed.deployment.processes import TOLD
from fullfed.engines.flower_messages import content_of, frames_of
from fullfed.engines.node_channel import ChannelError, ask
from fullfed.engines.node_limits import LimitError
from fullfed.errors import MessageError, UserError
from fullfed.files import sync_folder

_PAUSE = 1.0  # seconds between two looks for an order
_WORKER_PAUSE = 0.5  # seconds before a worker that is not there is asked again
_RETRY_SECONDS = 5.0
_AROUND = 1 << 20  # bytes that Flower puts around an order, at most
_APP_FAILED, _APP_REFUSED = 2, 7  # Flower's error codes
TURNED_AWAY = (
    "the server turns this node away: its key is not registered (any more), or another node runs "
    "with it, or ran until a minute ago, or the two clocks differ; trying again"
)


class Link:
    """Tells, once each, of a connection that is there, is lost and is there again."""

    def __init__(self, server: str, name: str) -> None:
        self._server, self._name = server, name
        self._lock = threading.Lock()
        self._lost_at: float | None = None
        self._told = ""

    def there(self, node: int) -> None:
        """The server has let the node in, as Flower's number ``node``, or has answered it."""
        with self._lock:
            away = "" if self._lost_at is None else f", after {time.time() - self._lost_at:.0f} s"
            self._say(f"connected to {self._server} as {self._name} (node {node}){away}")
            self._lost_at = None

    def lost(self, reason: str) -> None:
        """The server does not answer."""
        with self._lock:
            if self._lost_at is None:
                self._lost_at = time.time()
                clock = time.strftime("%H:%M:%S")
                self._say(f"no connection to {self._server} since {clock} ({reason}); trying again")

    def turned_away(self) -> None:
        """The server refuses the node's key."""
        with self._lock:
            self._say(f"{self._server}: {TURNED_AWAY}")

    def _say(self, sentence: str) -> None:
        if sentence != self._told:
            print(f"{TOLD}{sentence}", flush=True)
        self._told = sentence


def run(folder: NodeFolder, left: int) -> None:
    """Take part until stopped, whatever becomes of the connection.

    Args:
        left: Flower's number of the node that could not take leave; 0 if there is none.
    """
    settings = folder.settings()
    link = Link(settings.server, settings.name)
    while True:
        try:
            if _takes_next_key(folder, settings.server):
                left = 0  # that was a node of the old key
            # A new client each time, so that no connection of before is used again.
            with Fleet(settings.server, folder.authority, folder.key) as fleet:
                if left:
                    fleet.leave(left)
                left = fleet.connect()
                link.there(left)
                try:
                    with _Pulse(fleet, link, left):
                        carry_out(fleet, folder.worker_address, settings.limits.most_message_bytes)
                except SystemExit:
                    with suppress(LostConnectionError):
                        fleet.leave(left)
                    raise
        except TurnedAwayError:
            link.turned_away()
        except LostConnectionError as error:
            link.lost(str(error))
        time.sleep(_RETRY_SECONDS)


def _takes_next_key(folder: NodeFolder, server: str) -> bool:
    """Whether there is a next key and the server lets it in; then it takes the old one's place.

    Raises:
        LostConnectionError: the server does not answer.
    """
    if not folder.next_key.exists():
        return False
    with Fleet(server, folder.authority, folder.next_key) as fleet:
        try:
            fleet.leave(fleet.connect())
        except TurnedAwayError:
            return False
    folder.next_key.replace(folder.key)
    sync_folder(folder.path)
    return True


def carry_out(fleet: Fleet, worker: Path, most_bytes: int) -> None:
    """Answer what the server sends, for ever; what is too long is not fetched whole.

    Raises:
        LostConnectionError: the server does not answer. It takes the node for a new one when it is
            back, and sends again what it has no answer to; the worker remembers its last answer.
    """
    while True:
        with suppress(EndedRunError):
            try:
                message = fleet.receive(most_bytes + _AROUND)
            except TooLongError as error:
                fleet.reply(_refusal(error.message, most_bytes), 0.0)
                continue
            if message is None:
                time.sleep(_PAUSE)
            else:
                began = time.monotonic()
                fleet.reply(answer(message, worker), time.monotonic() - began)


def _refusal(message: Message, most_bytes: int) -> Message:
    error = LimitError("most_message_bytes", f"the order has more than {most_bytes} bytes")
    print(f"{TOLD}{error}", flush=True)
    return Message(Error(_APP_REFUSED, error.public), reply_to=message)


def answer(message: Message, worker: Path) -> Message:
    """The worker's answer to a message; an error to one that is no order of fullfed's, or if there
    is no room for the answer.

    While the worker is not there (it is restarted where it died) it is asked again.
    """
    try:
        frames = frames_of(message.content)
    except (MessageError, ValueError):
        reason = "this node carries out fullfed's orders, and no other app"
        return Message(Error(_APP_REFUSED, reason), reply_to=message)
    expires = message.metadata.created_at + message.metadata.ttl
    while True:
        try:
            seconds = max(expires - time.time(), _WORKER_PAUSE)
            return Message(content_of(ask(worker, frames, seconds)), reply_to=message)
        except ChannelError as error:
            if time.time() > expires:
                return Message(Error(_APP_FAILED, str(error)), reply_to=message)
            time.sleep(_WORKER_PAUSE)
        except UserError as error:
            print(f"{TOLD}{error}", flush=True)
            reason = "the node has no room for its answer"
            return Message(Error(_APP_FAILED, reason), reply_to=message)


class _Pulse:
    """Sends heartbeats while orders are carried out, and tells of a server that misses them."""

    def __init__(self, fleet: Fleet, link: Link, node: int) -> None:
        self._beat: Callable[[], None] = fleet.beat
        self._link, self._node = link, node
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _run(self) -> None:
        missed = 0
        while not self._over.wait(HEARTBEAT_SECONDS / 3):
            try:
                self._beat()
            except TurnedAwayError:
                if not self._over.is_set():
                    self._link.turned_away()
            except LostConnectionError as error:
                missed += 1
                if missed > 1 and not self._over.is_set():
                    self._link.lost(str(error))
            else:
                if missed > 1 and not self._over.is_set():
                    self._link.there(self._node)
                missed = 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    run(NodeFolder(Path(sys.argv[1])), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
