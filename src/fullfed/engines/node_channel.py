"""The local channel between a node's resident worker and the processes that bring its orders.

A Unix domain socket in a folder of its own (mode 0700), on which both sides prove that they know
a secret (HMAC, by multiprocessing.connection) before anything is read. What passes is a list of
the frames' names and sizes, then the frames. Nothing is unpickled.
"""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from fullfed.files import write_atomically

_LIST_LIMIT = 1 << 20
_TOTAL_LIMIT = 1 << 36  # bytes of an exchange: 64 GiB, more than any model trained in full here


class ChannelError(Exception):
    """The other side is not there, went away, or does not follow the protocol."""


def serve(address_file: Path, handle: Callable[[Mapping[str, bytes]], Mapping[str, bytes]]) -> None:
    """Answer one request after another, for ever.

    Args:
        address_file: says where the socket is, and the secret; readable by this user alone.
        handle: from the frames of a request to those of its answer.
    """
    _clear(address_file)
    folder, secret = tempfile.mkdtemp(prefix="fullfed-"), secrets.token_bytes(32)
    try:
        with Listener(f"{folder}/worker", "AF_UNIX", backlog=8, authkey=secret) as listener:
            about = {"folder": folder, "secret": secret.hex()}
            write_atomically(address_file, json.dumps(about).encode(), mode=0o600)
            while True:
                with suppress(OSError, EOFError, ValueError, AuthenticationError, ChannelError):
                    _serve_one(listener, handle)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve_one(
    listener: Listener, handle: Callable[[Mapping[str, bytes]], Mapping[str, bytes]]
) -> None:
    with listener.accept() as connection:
        _send(connection, handle(_receive(connection)))


def _clear(address_file: Path) -> None:
    """Remove the socket that a killed worker left behind."""
    with suppress(OSError, ValueError, KeyError):
        folder = Path(json.loads(address_file.read_bytes())["folder"])
        if folder.name.startswith("fullfed-"):
            shutil.rmtree(folder, ignore_errors=True)


def ask(address_file: Path, frames: Mapping[str, bytes]) -> dict[str, bytes]:
    """Send one request and wait for its answer.

    Raises:
        ChannelError: no worker answers at the address, or it went away meanwhile.
    """
    try:
        about = json.loads(address_file.read_bytes())
        address, secret = f"{about['folder']}/worker", bytes.fromhex(about["secret"])
        with Client(address, "AF_UNIX", authkey=secret) as connection:
            _send(connection, frames)
            return _receive(connection)
    except (OSError, EOFError, ValueError, KeyError, AuthenticationError) as error:
        raise ChannelError("the node's worker does not answer") from error


def _send(connection: Connection, frames: Mapping[str, bytes]) -> None:
    sizes = [[name, len(frame)] for name, frame in frames.items()]
    connection.send_bytes(json.dumps(sizes).encode())
    for frame in frames.values():
        connection.send_bytes(frame)


def _receive(connection: Connection) -> dict[str, bytes]:
    sizes = json.loads(connection.recv_bytes(_LIST_LIMIT))
    if not isinstance(sizes, list) or not all(_is_entry(entry) for entry in sizes):
        raise ChannelError("the list of what follows is malformed")
    if sum(size for _, size in sizes) > _TOTAL_LIMIT:
        raise ChannelError("what follows is too long")
    return {name: connection.recv_bytes(size) for name, size in sizes}


def _is_entry(entry: object) -> bool:
    match entry:
        case [str(), int(size)]:
            return size > 0
    return False
