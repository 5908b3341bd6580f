"""The local channel lets in who knows the secret, and survives everybody else."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from engines.backwards import answer
from flower.real import wait_until
from fullfed.engines.node_messages import ChannelError, ask, serve


@pytest.fixture
def address(tmp_path: Path) -> Iterator[Path]:
    """The address file of a server in another process."""
    file = tmp_path / "worker.json"
    server = get_context("spawn").Process(target=serve, args=(file, answer), daemon=True)
    server.start()
    wait_until(file.exists, "the server")
    yield file
    server.kill()
    server.join()


def test_pieces_come_back(address: Path) -> None:
    frames = {"ab": b"x", "cd": bytes(3 << 20)}
    for _ in range(2):
        assert ask(address, frames) == answer(frames)


def test_nobody_else_gets_at_the_socket_or_the_secret(address: Path) -> None:
    folder = Path(json.loads(address.read_text())["folder"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(address.stat().st_mode) == 0o600


def test_without_the_secret_nothing_is_answered_and_the_next_is(address: Path) -> None:
    about = json.loads(address.read_text())
    wrong = address.with_name("wrong.json")
    wrong.write_text(json.dumps({**about, "secret": "00" * 32}))
    with pytest.raises(ChannelError):
        ask(wrong, {"a": b"b"})
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(f"{about['folder']}/worker")
        stranger.sendall(os.urandom(100))
    assert ask(address, {"a": b"b"}) == {"a": b"bb"}


@pytest.mark.parametrize(
    "frames",
    [
        [b"not json"],
        [b"{}"],
        [b'[["a", -1]]'],
        [b'[["a", 99999999999999]]'],
        [b'[["a", 1]]', b"longer than announced"],
        [b'[["a", 1]]'],
    ],
)
def test_what_breaks_the_protocol_is_dropped_and_the_next_is_answered(
    address: Path, frames: list[bytes]
) -> None:
    about = json.loads(address.read_text())
    secret = bytes.fromhex(about["secret"])
    with Client(f"{about['folder']}/worker", "AF_UNIX", authkey=secret) as connection:
        for frame in frames:
            connection.send_bytes(frame)
    assert ask(address, {"a": b"b"}) == {"a": b"bb"}


def test_where_nobody_serves_the_error_is_the_channels(tmp_path: Path) -> None:
    with pytest.raises(ChannelError):
        ask(tmp_path / "worker.json", {"a": b"b"})
