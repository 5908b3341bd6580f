"""A run in Flower's own simulation, which has its nodes in processes of Ray's."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from fullfed.deployment.app_folder import write_app
from fullfed.deployment.flower import (
    Print,
    configure,
    environment,
    free_port,
    shown,
    simulating_superlink,
    submit,
)
from fullfed.deployment.processes import Child, pause, running
from fullfed.deployment.starting import follow
from fullfed.errors import UserError
from fullfed.federation.recipe import Recipe
from fullfed.runs.assembly import assemble
from fullfed.runs.folder import RunFolder

_START_SECONDS = 120.0


def simulate(recipe: Recipe, path: Path, say: Print) -> dict[str, Any]:
    """Carry out a recipe into a new folder, every client a simulated node; return the summary.

    Raises:
        UserError: bad input, or the run stops.
    """
    assembly, run = assemble(recipe), RunFolder(path.absolute())
    run.create(assembly.recipe)
    home, app, port = run.path / "flower", run.path / "app", free_port()
    write_app(app)
    configure(home, port, authority=None)
    command, log = simulating_superlink(port), home / "superlink.log"
    say(shown(command))
    server = Child(command, log, environment(home))
    with running(server):
        ends = time.monotonic() + _START_SECONDS
        while not _listens(port):
            if server.exit_code is not None or time.monotonic() > ends:
                raise UserError(f"{log}: Flower's server does not start; the log says why.")
            pause()
        submit(home, app, run.path, say, simulated=len(assembly.data.clients))
        return follow(run, log, say)


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
