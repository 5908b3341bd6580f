"""The commands that run a federation across organisations; each calls one function."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fullfed.errors import UserError
from fullfed.recipe_file import load_recipe

FederationDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A federation's folder.")]
NodeDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A partner's folder.")]
Data = Annotated[
    str | None, typer.Option("--data", metavar="PATH", help="The partner's own training data.")
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="PATH", help="The partner's copy of the model.")
]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable."),
]

FLOWER_VERSIONS = (1, 41), (1, 43)  # the oldest supported, and the first that is not known to work


def register(app: typer.Typer) -> None:
    """Add the commands to the program's."""
    for command in (serve, join, start, status, simulate, worker):
        app.command()(command)


def serve(directory: FederationDirectory) -> None:
    """Run a federation's server (Flower's SuperLink)."""
    check_installed()
    from fullfed.deployment.attendance import Attendance
    from fullfed.deployment.folders import ServerFolder
    from fullfed.deployment.server import partners_nodes
    from fullfed.deployment.server import serve as serve_federation

    folder = ServerFolder(directory)
    look = Attendance(folder.audit, lambda: partners_nodes(folder, folder.partners()), say).look
    serve_federation(folder, say, look)


def join(directory: NodeDirectory, data: Data = None, model: Model = None) -> None:
    """Take part in a federation (a link to its server, and fullfed's worker)."""
    check_installed()
    from fullfed.deployment import node
    from fullfed.deployment.folders import NodeFolder

    node.join(NodeFolder(directory.absolute()), data, model, say)


def start(
    directory: FederationDirectory,
    recipe: RecipeFile,
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="The run's folder.")
    ] = None,
) -> None:
    """Carry out a recipe on a federation, or carry on where the run was stopped."""
    check_installed()
    from fullfed.deployment import flower_runs
    from fullfed.deployment.folders import ServerFolder

    folder = ServerFolder(directory)
    path = out or folder.runs / recipe.stem
    show_end(flower_runs.start(folder, load_recipe(recipe, set_ or ()), path, say), path)


def status(directory: FederationDirectory) -> None:
    """Who is connected, and how far the runs are."""
    check_installed()
    from fullfed.deployment import server
    from fullfed.deployment.absences import local_time
    from fullfed.deployment.folders import ServerFolder
    from fullfed.deployment.processes import check_server

    folder = ServerFolder(directory)
    settings = folder.settings()
    up = check_server(folder.local_address, folder.authority)
    states, nodes = server.node_states(folder) if up else {}, server.registered(folder)
    table = Table("client", "partner", "node", "state", "since")
    for number, partner in enumerate(folder.partners()):
        known = states.get(partner.key)
        state, since = ("not registered", "") if known is None else (known.state, known.since)
        node = nodes.get(partner.key, "")
        table.add_row(str(number), partner.name, node, state, local_time(since))
    say(f"server {'runs' if up else 'does not run'} at {settings.address}:{settings.port}")
    Console().print(table)
    for path in sorted(folder.runs.iterdir()) if folder.runs.exists() else ():
        say(_how_far(path))


def _how_far(path: Path) -> str:
    """A run in one line, also one whose files are damaged."""
    from fullfed.deployment.status import ServerStatus
    from fullfed.runs.folder import RunFolder

    run = RunFolder(path)
    try:
        done, rounds = len(run.metrics()), run.recipe().federation.rounds
    except UserError as error:
        return str(error)
    at_work = "at work" if ServerStatus(path).alive else "ended" if done == rounds else "stopped"
    return f"{path}: {done} of {rounds} rounds, {at_work}"


def simulate(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="A new folder.")],
    set_: Overrides = None,
) -> None:
    """Carry out a recipe in Flower's own simulation (Ray), by the app that a federation runs."""
    check_installed("ray", "simulation")
    from fullfed.deployment import flower_runs

    show_end(flower_runs.simulate(load_recipe(recipe, set_ or ()), out, say), out)


def worker(directory: NodeDirectory, data: Data = None, model: Model = None) -> None:
    """A node's resident worker, which `fullfed join` runs; of several devices by torchrun."""
    check_installed()
    from torch.distributed import is_torchelastic_launched

    from fullfed.deployment.folders import NodeFolder
    from fullfed.deployment.node import LOG_FORMAT, Indented, configured
    from fullfed.deployment.node_task import TaskLoader
    from fullfed.deployment.owner import owner_of
    from fullfed.engines import node_channel
    from fullfed.engines.node import NodeWorker
    from fullfed.engines.node_team import Team, follow
    from fullfed.files import locked, private_files
    from fullfed.training.trainer import named_trainer

    handler = logging.StreamHandler()
    handler.setFormatter(Indented(LOG_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the socket's folder goes too
    folder = NodeFolder(directory.absolute())
    settings = configured(folder, data, model)
    assert settings.data is not None  # configured sees to it
    limits, own = settings.limits, (settings.columns, settings.ignore)
    trainer = None if settings.trainer is None else named_trainer(settings.trainer)
    place = settings.data, settings.model, settings.device
    several = settings.devices > 1 and is_torchelastic_launched()
    team = Team(settings.device) if several else None
    load = TaskLoader(*place, limits, *own, trainer, team)
    if team is not None and not team.leads:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once: it has nothing to put away
        follow(team, load.follow)
        sys.exit(1)
    running = f"{folder.path}: a worker runs here already; end it."
    out_of_step = threading.Event()
    with private_files(), locked(folder.path / "worker.lock", running):
        node = NodeWorker(folder.state, load, limits, owner_of(folder, settings), out_of_step)
        stop = None if team is None else out_of_step  # alone it is in step with itself
        node_channel.serve(folder.worker_address, node, stop)
    sys.exit(1)  # for it to be started again, with the others


def record_rollback(directory: Path, version: int, why: str) -> None:
    """Put the rollback of a run into its federation's audit file, if it has one here."""
    from fullfed.deployment.members import read_federation, read_members

    members, federation = read_members(directory), read_federation(directory)
    if members is None or federation is None:
        return
    check_installed()
    from fullfed.deployment.folders import ServerFolder

    folder = ServerFolder(federation)
    if folder.settings_file.exists():
        folder.audit.record("rollback", run=members.run, version=version, why=why)


def show_end(summary: Mapping[str, Any], path: Path, table: bool = True) -> None:
    """Say what came of the run in a folder."""
    from fullfed.reports.runs import summary_table

    if table:
        Console().print(summary_table([summary]))
    say(f"model {summary['model_hash'][:16]}  written to {path}")


def check_installed(package: str = "flwr", extra: str = "flower") -> None:
    """Raise a UserError if the package is not installed, or Flower is of another version."""
    install = f'pip install "fullfed[{extra}]"'
    if find_spec(package) is None:
        raise UserError(f"this needs {package}; install it: {install}.")
    found, (oldest, beyond) = version("flwr"), FLOWER_VERSIONS
    if not oldest <= tuple(int(part) for part in found.split(".")[:2]) < beyond:
        raise UserError(f"Flower {found} is not supported; install one that is: {install}.")


def say(text: str) -> None:
    print(text, flush=True)  # so that a service's log shows it at once
