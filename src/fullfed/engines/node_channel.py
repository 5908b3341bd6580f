"""The channel between a node's relays, processes that a network engine starts, and its worker.

A Unix domain socket in a folder of this user alone. The kernel says which user asks, where it can
(Linux), and both sides prove that they know a secret (HMAC-SHA256 of each other's nonces). Then the
relay says how long its frames are, the worker whether it wants them, and the answer comes back the
same way. The worker reads nothing without a deadline, and takes connections while it works, so a
silent client blocks nobody. Frames are payloads: large ones are received into files.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import queue
import secrets
import shutil
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from fullfed.engines.node_messages import Frames
from fullfed.errors import UserError
from fullfed.files import write_atomically
from fullfed.payloads import Payload, joined
from fullfed.strict_json import parse_json

_log = logging.getLogger(__name__)
_NONCE = 32  # bytes, of a SHA-256 too
_SIZES_LIMIT = 1 << 20  # bytes of the list of names and sizes
ANSWER_LIMIT = 1 << 36  # bytes of an answer: 64 GiB, more than any model trained in full here
_PATIENCE = 30.0  # seconds that the two sides may take to come to the point, ...
_SLOWEST = 1 << 20  # ... and bytes a second from there on
_LOOK_SECONDS = 0.5  # between two looks whether to stop
_PART = 1 << 20  # bytes of a frame that are received at once
_AT_ONCE = 16  # connections that are not requests yet
_PATH_LIMIT = 100  # bytes of a socket's path; systems allow 104 or 108
_SOCKET = "worker"
_WANTED, _UNWANTED = b"\1", b"\0"


class ChannelError(Exception):
    """The other side is not there, went away, or does not follow the protocol."""


class Handler(Protocol):
    """What answers requests."""

    def refuse(self, nbytes: int) -> Frames | None:
        """The answer to a request of so many bytes that is not wanted; None where it is."""

    def handle(self, frames: Frames) -> Frames:
        """The answer to a request."""


@dataclass(frozen=True)
class _Request:
    """A relay that has proved who it is and said how long its frames are."""

    connection: socket.socket
    reader: BinaryIO
    sizes: Mapping[str, int]

    def close(self) -> None:
        self.reader.close()
        self.connection.close()


def serve(address_file: Path, handler: Handler, stop: threading.Event | None = None) -> None:
    """Answer one request after another in this thread.

    Args:
        address_file: says where the socket is, and the secret; readable by this user alone.
        stop: once it is set no more are answered; None for ever.
    """
    stop = stop or threading.Event()
    _clear(address_file)
    secret, requests = secrets.token_bytes(_NONCE), queue.Queue[_Request](_AT_ONCE)
    with (
        tempfile.TemporaryDirectory(prefix="fullfed-", dir=_socket_folder()) as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(f"{folder}/{_SOCKET}")
        listener.listen(_AT_ONCE)
        about = {"folder": folder, "secret": secret.hex()}
        write_atomically(address_file, json.dumps(about).encode(), mode=0o600)
        accept = threading.Thread(target=_accept, args=(listener, secret, requests), daemon=True)
        accept.start()
        while not stop.is_set():
            try:
                due = requests.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            with closing(due) as request, suppress(OSError, ChannelError):
                try:
                    _answer(request, handler)
                except UserError as error:  # there is no room for it
                    _log.error("%s", error)


def _accept(listener: socket.socket, secret: bytes, requests: queue.Queue[_Request]) -> None:
    """Take connections, each in a thread of its own until it is a request."""
    room = threading.BoundedSemaphore(_AT_ONCE)

    def admit(connection: socket.socket) -> None:
        reader = connection.makefile("rb")
        try:
            _check_user(connection)
            with _ending(connection, _PATIENCE):
                _prove(connection, reader, secret, b"worker", b"relay")
                sizes = _receive_sizes(reader)
            requests.put(_Request(connection, reader, sizes))
        except (OSError, ValueError, ChannelError):
            reader.close()
            connection.close()
        finally:
            room.release()

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # it was closed
            return
        if room.acquire(blocking=False):
            threading.Thread(target=admit, args=(connection,), daemon=True).start()
        else:
            connection.close()


def _answer(request: _Request, handler: Handler) -> None:
    connection, nbytes = request.connection, sum(request.sizes.values())
    answer = handler.refuse(nbytes)
    if answer is None:
        with _ending(connection, _PATIENCE + nbytes / _SLOWEST):
            connection.sendall(_WANTED)
            frames = _receive_frames(request.reader, request.sizes)
        answer = handler.handle(frames)
        del frames
    else:
        connection.sendall(_UNWANTED)
    with _ending(connection, _PATIENCE + sum(map(len, answer.values())) / _SLOWEST):
        _send_sizes(connection, answer)
        _send_frames(connection, answer)


@contextmanager
def _ending(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Inside, the connection ends after so many seconds, whatever passes or does not."""

    def end() -> None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def ask(address_file: Path, frames: Frames, seconds: float | None = None) -> dict[str, Payload]:
    """Send one request and wait for its answer.

    Args:
        seconds: to wait at most for the answer to begin; None for ever.

    Raises:
        ChannelError: no worker answers at the address, or it went away meanwhile.
        UserError: there is no room for the answer.
    """
    try:
        about = parse_json(address_file.read_bytes())
        address, secret = f"{about['folder']}/{_SOCKET}", bytes.fromhex(about["secret"])
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(address)
            with connection.makefile("rb") as reader:
                _prove(connection, reader, secret, b"relay", b"worker")
                _send_sizes(connection, frames)
                connection.settimeout(seconds)  # others may be answered first
                if _read(reader, 1) == _WANTED:
                    _send_frames(connection, frames)
                sizes = _receive_sizes(reader)
                if sum(sizes.values()) > ANSWER_LIMIT:
                    raise ChannelError("the answer is too long")
                return _receive_frames(reader, sizes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ChannelError("the node's worker does not answer") from error


def _socket_folder() -> str | None:
    """Where a socket's path is short enough; None for the usual place of temporary files."""
    room = _PATH_LIMIT - len(f"/fullfed-12345678/{_SOCKET}")
    return None if len(os.fsencode(tempfile.gettempdir())) <= room else "/tmp"


def _clear(address_file: Path) -> None:
    """Remove the socket that a killed worker left behind."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        folder = Path(parse_json(address_file.read_bytes())["folder"])
        if folder.name.startswith("fullfed-"):
            shutil.rmtree(folder, ignore_errors=True)


def _check_user(connection: socket.socket) -> None:
    """ChannelError if the kernel says that it is another user who asks; elsewhere the folder's
    mode and the secret say so."""
    if sys.platform != "linux":
        return
    size = struct.calcsize("3i")
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, user, _ = struct.unpack("3i", told)
    if user != os.getuid():
        raise ChannelError("another user asks")


def _prove(
    connection: socket.socket, reader: BinaryIO, secret: bytes, own: bytes, other: bytes
) -> None:
    """Exchange nonces and proofs.

    Args:
        own, other: the names of the two sides, so that neither can send a proof back.

    Raises:
        ChannelError: the other side does not know the secret.
    """
    mine = secrets.token_bytes(_NONCE)
    connection.sendall(mine)
    nonces = {own: mine, other: _read(reader, _NONCE)}
    both = nonces[b"relay"] + nonces[b"worker"]
    connection.sendall(hmac.digest(secret, own + both, "sha256"))
    proof = _read(reader, _NONCE)
    if not hmac.compare_digest(proof, hmac.digest(secret, other + both, "sha256")):
        raise ChannelError("the other side does not know the secret")


def _send_sizes(connection: socket.socket, frames: Frames) -> None:
    listed = json.dumps([[name, len(frame)] for name, frame in frames.items()]).encode()
    connection.sendall(struct.pack("<I", len(listed)) + listed)


def _send_frames(connection: socket.socket, frames: Frames) -> None:
    for frame in frames.values():
        connection.sendall(frame)


def _receive_sizes(reader: BinaryIO) -> Mapping[str, int]:
    (length,) = struct.unpack("<I", _read(reader, 4))
    if length > _SIZES_LIMIT:
        raise ChannelError("the list of sizes is too long")
    listed = parse_json(_read(reader, length))
    if not isinstance(listed, list):
        raise ChannelError("the list of sizes is none")
    sizes: dict[str, int] = {}
    for item in listed:
        if not isinstance(item, list) or len(item) != 2:
            raise ChannelError("the list of sizes is malformed")
        name, size = item
        if not isinstance(name, str) or type(size) is not int or size < 1 or name in sizes:
            raise ChannelError("the list of sizes is malformed")
        sizes[name] = size
    return sizes


def _receive_frames(reader: BinaryIO, sizes: Mapping[str, int]) -> dict[str, Payload]:
    return {name: joined(_parts(reader, size), size) for name, size in sizes.items()}


def _parts(reader: BinaryIO, count: int) -> Iterator[bytes]:
    while count:
        part = _read(reader, min(count, _PART))
        count -= len(part)
        yield part


def _read(reader: BinaryIO, count: int) -> bytes:
    try:
        received = reader.read(count)
    except OSError as error:  # not to be taken for a disk's
        raise ChannelError("the other side does not answer") from error
    if len(received) != count:
        raise ChannelError("the other side went away")
    return received
