"""The gate before Flower's server: deny by default, on both sides of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fullfed.deployment.gate import BODY_LIMIT, Gate

LOCAL, PUBLIC = 4000, 8443
KEY = (b"authorization", b"Bearer the-key")
LENGTH = (b"content-length", b"10")
PULL, START, ACQUIRE = (
    "/v1/fleet/pull-messages",
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
)


def status(port: int, path: str, *headers: tuple[bytes, bytes], method: str = "POST") -> int:
    """What comes of a request: 200 if it reaches the application behind the gate."""
    said: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing of a request's body is read before the gate has decided")

    scope = {"type": "http", "method": method, "path": path, "server": ("10.0.0.1", port)}
    gate = Gate(application, LOCAL, "the-key")
    asyncio.run(gate({**scope, "headers": [*headers]}, receive, send))
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
