"""A run in Flower's own simulation, which has its nodes in processes of Ray's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fullfed.config import Recipe
from fullfed.deployment.app_folder import write_app
from fullfed.deployment.flower import (
    Print,
    configure,
    environment,
    shown,
    simulating_superlink,
    submit,
)
from fullfed.deployment.processes import Child, running
from fullfed.deployment.serving import wait_for_start
from fullfed.deployment.sockets import free_port, listens
from fullfed.deployment.starting import follow
from fullfed.runs.assembly import assemble
from fullfed.runs.folder import RunFolder


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
        wait_for_start(server, log, lambda: listens(port))
        submit(home, app, run.path, say, simulated=len(assembly.data.clients))
        return follow(run, log, say)
