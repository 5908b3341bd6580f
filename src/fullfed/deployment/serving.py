"""Running the server of a federation."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fullfed.deployment.flower import (
    Print,
    configure,
    environment,
    shown,
    superlink,
    sync_nodes,
)
from fullfed.deployment.identities import check_not_expired
from fullfed.deployment.processes import Child, pause, running
from fullfed.deployment.server_folder import ServerFolder
from fullfed.deployment.sockets import check_port_free, check_server
from fullfed.errors import UserError

_START_SECONDS = 120.0


def serve(folder: ServerFolder, say: Print) -> None:
    """Run the server until it is stopped.

    Raises:
        UserError: the port is in use, the certificate has expired, or Flower gives up.
    """
    settings = folder.settings()
    renew = f"renew it with `fullfed federation renew {folder.federation}`"
    check_not_expired(folder.certificate, renew)
    check_port_free(settings.listen, settings.port)
    configure(folder.flower, settings.port, folder.authority)
    command = superlink(folder)
    say(shown(command))
    log = folder.flower / "superlink.log"
    server = Child(command, log, environment(folder.flower))
    with running(server):
        address = f"127.0.0.1:{settings.port}"
        wait_for_start(server, log, lambda: check_server(address, folder.authority))
        sync_nodes(folder, say)
        say(f"serving {len(settings.partners)} partners at {settings.address}:{settings.port}")
        while server.exit_code is None:
            pause()
    raise UserError(f"{log}: Flower's server has ended; the log says why.")


def wait_for_start(server: Child, log: Path, there: Callable[[], bool]) -> None:
    """
    Raises:
        UserError: the server ends before it is there, or takes too long.
    """
    ends = time.monotonic() + _START_SECONDS
    while not there():
        if server.exit_code is not None or time.monotonic() > ends:
            raise UserError(f"{log}: Flower's server does not start; the log says why.")
        pause()
