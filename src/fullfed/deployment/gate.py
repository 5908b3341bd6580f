"""What passes into Flower's server: nothing but what is listed here.

Flower serves nodes, its own processes and whoever controls it on one port, and asks no key of the
last. Here the server listens twice. Nodes' calls pass where partners reach it, and no others;
Flower checks their signatures, and no node gets more than its share. The operator's calls pass on
this machine's loopback alone, and only with the key that lies in the server's folder.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fullfed.deployment.meter import Meter, key_in

_FLEET = "/v1/fleet/"
_NODES_CALLS = frozenset(
    _FLEET + name
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
)  # Registering is the operator's; no node fetches a run or an app.
_OPERATORS_CALLS = "/v1/control/"
_PROCESSES_CALLS = "/v1/runtime/"  # Flower asks them for a token, or for a signature by our key
_NODE_KEY = b"flwr-public-key"  # the header that names a node's key
BODY_LIMIT = 32 << 20  # bytes of a node's request; Flower cuts objects into chunks of 5 MiB

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
Application = Callable[[_Message, _Receive, _Send], Awaitable[None]]


class Gate:
    """An ASGI application that lets through to Flower's what is listed above.

    Args:
        application: Flower's.
        local_port: of the listener on this machine's loopback; all others are the partners'.
        key: what the operator's requests bear.
        meter: what each node may ask for.
    """

    def __init__(self, application: Application, local_port: int, key: str, meter: Meter) -> None:
        self._application = application
        self._local_port = local_port
        self._meter = meter
        self._authorization = f"Bearer {key}".encode()

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        elif scope["type"] == "http" and not self._lets_in(scope):
            await _refuse(send, 403, b"not served here, or not without the key")
        elif scope["type"] == "http" and scope["server"][1] == self._local_port:
            await self._application(scope, receive, send)
        elif scope["type"] == "http":
            await self._metered(scope, receive, send)

    async def _metered(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Pass a node's call on, and count it if Flower lets it in, unless it has had its share."""
        named = [value for name, value in scope["headers"] if name == _NODE_KEY]
        key = key_in(named[0]) if len(named) == 1 else ""

        async def counted(message: _Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                self._meter.count(key, int(_length(scope)))
            await send(message)

        if self._meter.allows(key):
            await self._application(scope, receive, counted)
        else:
            await _refuse(send, 429, b"more than the server's operator allows in a minute")

    def _lets_in(self, scope: _Message) -> bool:
        path, port = scope["path"], scope["server"][1]
        if scope["method"] != "POST":
            return False
        if port != self._local_port:
            return path in _NODES_CALLS and _length(scope) <= BODY_LIMIT
        if path.startswith(_OPERATORS_CALLS):
            borne = [value for name, value in scope["headers"] if name == b"authorization"]
            return len(borne) == 1 and hmac.compare_digest(borne[0], self._authorization)
        return bool(path.startswith(_PROCESSES_CALLS))


def _length(scope: _Message) -> float:
    """Bytes of the request's body; without end if it does not say."""
    said = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(said[0]) if len(said) == 1 and said[0].isdigit() else float("inf")


async def _refuse(send: _Send, status: int, reason: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason})
