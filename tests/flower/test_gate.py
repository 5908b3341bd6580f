"""The gate before Flower's server: deny by default, on both sides of it."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from fullfed.deployment import gate
from fullfed.deployment.folders import ServerFolder
from fullfed.deployment.gate import BODY_LIMIT, Gate
from fullfed.deployment.identities import public_key_pem
from fullfed.deployment.meter import Meter, PartnerLimits
from fullfed.errors import UserError

LOCAL, PUBLIC = 4000, 8443
GENEROUS = Meter({}, PartnerLimits())
KEY = (b"authorization", b"Bearer the-key")
LENGTH = (b"content-length", b"10")
PULL, START, ACQUIRE = (
    "/v1/fleet/pull-messages",
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
)


def status(
    port: int,
    path: str,
    *headers: tuple[bytes, bytes],
    method: str = "POST",
    meter: Meter = GENEROUS,
    answer: int = 200,
) -> int:
    """What comes of a request: ``answer`` if it reaches the application behind the gate."""
    said: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": answer})

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing of a request's body is read before the gate has decided")

    scope = {"type": "http", "method": method, "path": path, "server": ("10.0.0.1", port)}
    guarded = Gate(application, LOCAL, "the-key", meter)
    asyncio.run(guarded({**scope, "headers": [*headers]}, receive, send))
    return int(said[0]["status"])


def test_nodes_calls_pass_where_partners_reach_the_server_and_nothing_else_does() -> None:
    assert status(PUBLIC, PULL, LENGTH) == 200
    for path in (START, ACQUIRE, "/docs", "/v1/fleet/register-node", "/v1/fleet/get-fab"):
        assert status(PUBLIC, path, LENGTH, KEY) == 403
    for path in (PULL + "/", PULL.upper(), "/v1/fleet/../control/start-run", "//v1/fleet/x"):
        assert status(PUBLIC, path, LENGTH) == 403
    assert status(PUBLIC, PULL, LENGTH, method="GET") == 403


@pytest.mark.parametrize("length", [b"%d" % (BODY_LIMIT + 1), b"-1", b"1e3", b"", None])
def test_a_request_of_a_nodes_has_a_bounded_length(length: bytes | None) -> None:
    headers = [] if length is None else [(b"content-length", length)]
    assert status(PUBLIC, PULL, *headers) == 403
    assert status(PUBLIC, PULL, LENGTH, LENGTH) == 403


def test_the_operators_calls_pass_on_the_loopback_with_the_key() -> None:
    assert status(LOCAL, START, KEY) == 200
    assert status(LOCAL, ACQUIRE) == 200, "Flower asks for a signature by the key itself"
    wrong = [(), ((b"authorization", b"Bearer other"),), ((b"authorization", b""),), (KEY, KEY)]
    assert [status(LOCAL, START, *headers) for headers in wrong] == [403] * 4
    assert status(LOCAL, PULL, LENGTH) == 403, "nodes have no business here"
    assert status(LOCAL, START, KEY, method="GET") == 403


def signed(key: str) -> tuple[bytes, bytes]:
    """The header by which Flower's client names a node's key."""
    return b"flwr-public-key", base64.b64encode(key.encode())


def test_a_node_that_has_had_its_share_of_a_minute_waits_for_the_next() -> None:
    """By requests or by bytes; each node has its own share, and nobody uses up another's."""
    now = 0.0
    north = PartnerLimits(requests_a_minute=3, bytes_a_minute=1000)
    meter = Meter({"north": north}, PartnerLimits(bytes_a_minute=25), lambda: now)

    def asked(key: str, answer: int = 200) -> int:
        return status(PUBLIC, PULL, LENGTH, signed(key), meter=meter, answer=answer)

    assert [asked("north", answer=401) for _ in range(9)] == [401] * 9, "Flower let none of them in"
    assert [asked("north") for _ in range(4)] == [200, 200, 200, 429]
    assert [asked("south") for _ in range(4)] == [200, 200, 200, 429], "after 30 of 25 bytes"
    assert asked("east") == 200
    assert status(LOCAL, START, KEY, meter=meter) == 200
    now = 60.0
    assert [asked("north"), asked("south")] == [200, 200]


def test_what_names_no_key_is_left_to_flower() -> None:
    meter = Meter({}, PartnerLimits(requests_a_minute=1))
    for header in (b"\xff", b"!", base64.b64encode(b"\xff")):
        given = (b"flwr-public-key", header)
        assert status(PUBLIC, PULL, LENGTH, given, meter=meter, answer=401) == 401
    assert status(PUBLIC, PULL, LENGTH, meter=meter, answer=401) == 401
    assert status(PUBLIC, PULL, LENGTH, signed("a"), signed("b"), meter=meter, answer=401) == 401


def test_the_header_is_flowers() -> None:
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

    assert FLEET_HTTP_PUBLIC_KEY_HEADER.encode().lower() == gate._NODE_KEY


def test_limits_are_those_of_federation_toml(tmp_path: Path) -> None:
    names = ["north", "south"]
    there = "127.0.0.1", 8443, "127.0.0.1"
    folder = ServerFolder.create(tmp_path / "fed", names, *there, "builtin")
    text = folder.settings_file.read_text().replace(
        "[limits_of]", '[limits_of.north]\nbytes_a_minute = "1MiB"\n'
    )
    folder.settings_file.write_text(text)
    Meter(folder.limits(), folder.settings().limits).write(tmp_path / "limits.json")
    meter = Meter.read(tmp_path / "limits.json")
    north, south = (public_key_pem(folder.public_key(name)) for name in names)
    for key in (north, south):
        meter.count(key, 1 << 20)
    assert not meter.allows(north)
    assert meter.allows(south)
    folder.remove("north")
    assert folder.settings().limits_of == {}
    folder.settings_file.write_text(text.replace("north]", "west]"))
    with pytest.raises(UserError, match=r"limits_of.west: there is no partner 'west'"):
        folder.settings()
