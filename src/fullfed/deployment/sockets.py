"""Ports of this machine, and whether the server behind one is the federation's."""

from __future__ import annotations

import socket
import ssl
from contextlib import closing
from pathlib import Path

from fullfed.errors import UserError

_TIMEOUT = 10.0  # seconds


def check_server(address: str, authority: Path) -> bool:
    """Whether the server at host:port is there and is the federation's.

    Raises:
        UserError: it is there and is not, or its certificate has expired.
    """
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            socket.create_connection((host, int(port)), timeout=_TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLCertVerificationError as error:
        raise UserError(
            f"{address}: the server's certificate is refused ({error.verify_message}); "
            "ask whoever runs the server."
        ) from error
    except (OSError, ValueError):
        return False


def check_port_free(host: str, port: int) -> None:
    """
    Raises:
        UserError: something listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"{host}:{port}: the port cannot be used ({error.strerror}); stop what uses it, "
                "or change `port` in federation.toml and in every node.toml."
            ) from error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something on this machine does."""
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
