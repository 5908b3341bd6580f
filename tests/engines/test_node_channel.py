"""The local channel lets in who knows the secret, and survives everybody else."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from engines.backwards import TOO_LONG, Backwards
from flower.real import wait_until
from fullfed import payloads
from fullfed.engines import node_channel
from fullfed.engines.node_channel import ChannelError, ask, serve

FRAMES = {"a": b"b"}
ANSWER = {"a": b"bb"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The address file of a server in another process, which outlives every test here."""
    file = tmp_path_factory.mktemp("node") / "worker.json"
    server = get_context("spawn").Process(target=serve, args=(file, Backwards()), daemon=True)
    server.start()
    wait_until(file.exists, "the server")
    yield file
    assert server.is_alive()
    server.kill()
    server.join()


def connected(address: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{json.loads(address.read_text())['folder']}/worker")
    return connection


def proven(address: Path) -> socket.socket:
    """A connection whose client has proved that it knows the secret, and says nothing more."""
    connection = connected(address)
    secret = bytes.fromhex(json.loads(address.read_text())["secret"])
    with connection.makefile("rb") as reader:
        node_channel._prove(connection, reader, secret, b"relay", b"worker")
    return connection


def test_pieces_come_back(address: Path) -> None:
    frames = {"ab": b"x", "cd": bytes(3 << 20)}
    for _ in range(2):
        assert ask(address, frames) == Backwards().handle(frames)


def test_nobody_else_gets_at_the_socket_or_the_secret(address: Path) -> None:
    folder = Path(json.loads(address.read_text())["folder"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(address.stat().st_mode) == 0o600


def test_without_the_secret_nothing_is_answered_and_the_next_is(address: Path) -> None:
    about = json.loads(address.read_text())
    wrong = address.with_name("wrong.json")
    wrong.write_text(json.dumps({**about, "secret": "00" * 32}))
    with pytest.raises(ChannelError):
        ask(wrong, FRAMES)
    with connected(address) as stranger:
        stranger.sendall(os.urandom(100))
    assert ask(address, FRAMES) == ANSWER


@pytest.mark.parametrize("connect", [connected, proven])
def test_silent_clients_block_nobody(address: Path, connect: Any) -> None:
    silent = [connect(address) for _ in range(5)]
    began = time.monotonic()
    assert ask(address, FRAMES) == ANSWER
    assert time.monotonic() - began < 5
    for connection in silent:
        connection.close()


def test_a_client_that_stops_half_way_is_waited_for_a_while_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Announces a frame and sends half of it, a byte at a time."""
    monkeypatch.setattr(node_channel, "_PATIENCE", 0.3)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "worker.json"
        threading.Thread(target=serve, args=(file, Backwards()), daemon=True).start()
        wait_until(file.exists, "the server")
        slow = proven(file)
        node_channel._send_sizes(slow, {"a": bytes(100)})

        def trickle() -> None:
            for _ in range(50):
                slow.sendall(b"x")
                time.sleep(0.1)

        with pytest.raises(OSError, match=r".*"):
            trickle()
        assert ask(file, FRAMES) == ANSWER


NESTED = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "listed",
    [
        b"not json",
        b"{}",
        b"[3]",
        b'[["a", -1]]',
        b'[["a", true]]',
        b'[["a", 1, 2]]',
        b'[["a", 1], ["a", 1]]',
        b'[["a", 99999999999999]]',
        b'[["a", 1]]',
        NESTED,
        b'[["a", ' + NESTED + b"]]",
    ],
)
def test_what_breaks_the_protocol_is_dropped_and_the_next_is_answered(
    address: Path, listed: bytes
) -> None:
    with proven(address) as connection:
        connection.sendall(struct.pack("<I", len(listed)) + listed)
    assert ask(address, FRAMES) == ANSWER


def test_a_list_of_sizes_that_is_too_long_is_not_read(address: Path) -> None:
    with proven(address) as connection:
        connection.sendall(struct.pack("<I", 1 << 31))
        assert connection.recv(1) == b""
    assert ask(address, FRAMES) == ANSWER


def test_a_request_that_is_not_wanted_is_answered_before_it_is_sent(address: Path) -> None:
    class Claim(bytes):
        """Says that it is long."""

        def __len__(self) -> int:
            return TOO_LONG + 1

    assert ask(address, {"a": Claim()}) == {"refused": str(TOO_LONG + 1).encode()}


def test_a_long_path_of_temporary_files_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    file = tmp_path / "worker.json"
    threading.Thread(target=serve, args=(file, Backwards()), daemon=True).start()
    wait_until(file.exists, "the server")
    assert ask(file, FRAMES) == ANSWER


def test_a_large_frame_that_does_not_come_is_no_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "LARGE", 1)
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as reader:
        ours.settimeout(0.01)
        theirs.sendall(b"half")
        with pytest.raises(ChannelError):
            node_channel._receive_frames(reader, {"a": 8})


def test_another_user_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair()
    with one, other:
        node_channel._check_user(one)
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(ChannelError, match="another user"):
            node_channel._check_user(one)


def test_where_nobody_serves_the_error_is_the_channels(tmp_path: Path) -> None:
    with pytest.raises(ChannelError):
        ask(tmp_path / "worker.json", FRAMES)
