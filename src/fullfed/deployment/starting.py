"""Starting a run on a federation, and following it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fullfed.config import Recipe
from fullfed.deployment.flower import Print, submit
from fullfed.deployment.processes import pause
from fullfed.deployment.run_files import MembersFile, ServerStatus
from fullfed.deployment.server_folder import ServerFolder
from fullfed.deployment.sockets import check_server
from fullfed.errors import UserError
from fullfed.runs.assembly import method_options, resolved
from fullfed.runs.folder import RunFolder
from fullfed.runs.progress import describe_round

_START_SECONDS = 120.0


def start(folder: ServerFolder, recipe: Recipe, path: Path, say: Print) -> dict[str, Any]:
    """Begin a run, or carry on the one in the folder; follow it to its end; return the summary.

    Raises:
        UserError: the recipe is bad, the server is not there, or the run stops.
    """
    settings = folder.settings()
    run = _prepare(folder, recipe, path.absolute())
    status = ServerStatus(run.path)
    if run.summary_file.exists():
        return run.summary()
    if not check_server(f"127.0.0.1:{settings.port}", folder.authority):
        raise UserError(
            f"{folder.federation}: the server does not run; "
            f"run `fullfed serve {folder.federation}`."
        )
    if not status.alive:
        status.clear()
        submit(folder.flower, folder.app, run.path, say)
    return follow(run, folder.flower / "superlink.log", say)


def _prepare(folder: ServerFolder, recipe: Recipe, path: Path) -> RunFolder:
    """The run's folder, made if it is a new run."""
    settings, run = folder.settings(), RunFolder(path)
    chosen = resolved(recipe, method_options(recipe.method))
    if chosen.federation.clients_per_round > len(settings.partners):
        raise UserError(
            f"federation.clients_per_round: {chosen.federation.clients_per_round} clients a round, "
            f"but the federation has only {len(settings.partners)} partners; lower it."
        )
    if not run.recipe_file.exists():
        run.create(chosen)
    elif run.recipe() != chosen:
        raise UserError(f"{path}: the run here is of another recipe; name another with --out.")
    members = MembersFile(run.path)
    if not members.path.exists():
        members.create(folder.members())
    return run


def follow(run: RunFolder, log: Path, say: Print) -> dict[str, Any]:
    """Tell of a run's rounds until it ends; return the summary.

    Args:
        log: the SuperLink's.

    Raises:
        UserError: it does not begin, or stops.
    """
    status = ServerStatus(run.path)
    rounds, shown = run.recipe().federation.rounds, len(run.metrics())
    ends = time.monotonic() + _START_SECONDS
    while not status.begun:
        if time.monotonic() > ends:
            raise UserError(f"{log}: Flower does not start the run; the log says why.")
        pause()
    while True:
        alive = status.alive  # before looking, so that nothing written last is missed
        for record in run.metrics()[shown:]:
            say(describe_round(record, rounds))
            shown += 1
        if run.summary_file.exists():
            return run.summary()
        if status.error is not None:
            raise UserError(status.error)
        if not alive:
            raise UserError(
                f"{run.path}: the run's process has died after round {shown}; the same command "
                f"carries it on ({log} may say why)."
            )
        pause()
