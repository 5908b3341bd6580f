"""The server's process: Flower's SuperLink behind the gate.

``python -m fullfed.deployment.superlink LISTEN PORT KEYFILE ARGUMENTS...`` listens for partners at
LISTEN:PORT, unless LISTEN is "-", and for this machine at the port of the arguments, which are
those of ``flower-superlink``. Where this version of Flower cannot be put behind the gate nothing
listens at all.
"""

from __future__ import annotations

import gc
import socket
import sys
from pathlib import Path

import uvicorn

from fullfed.deployment.flower_internals import superlink_parts
from fullfed.deployment.gate import Gate
from fullfed.deployment.meter import LIMITS, Meter
from fullfed.deployment.processes import NOT_LISTENING

_LOOPBACK = "127.0.0.1"
_COLLECT_AFTER = 200, 2, 2  # as gc.set_threshold has them
_GRACE = 3  # seconds; who is cut off asks again


def main() -> None:
    """Run the server until it is stopped."""
    listen, port, key_file, *arguments = sys.argv[1:]
    parts = superlink_parts(arguments)
    key, meter = Path(key_file).read_text("ascii"), Meter.read(Path(key_file).with_name(LIMITS))
    gate = Gate(parts.application, parts.port, key, meter)
    sockets = [_listener(_LOOPBACK, parts.port)]
    if listen != NOT_LISTENING:
        sockets.append(_listener(listen, int(port)))
    config = uvicorn.Config(
        gate,
        ssl_certfile=parts.certificate,
        ssl_keyfile=parts.key,
        log_config=parts.log_config,
        lifespan="on",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    _collect_often()
    uvicorn.Server(config).run(sockets=sockets)


def _collect_often() -> None:
    """Have Python look often for what requests leave behind: each leaves a chunk of some MiB, and
    Python counts objects, not bytes. What was there before any request is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


if __name__ == "__main__":
    main()
