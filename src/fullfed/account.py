"""Who does something on this machine, for records that people read."""

from __future__ import annotations

import getpass
import socket


def account() -> str:
    """The account that this process runs under, as "alice at host"."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in some containers
        name = "an unnamed user"
    return f"{name} at {socket.gethostname()}"
