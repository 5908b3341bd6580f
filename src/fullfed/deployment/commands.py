"""The commands of a federation across organisations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fullfed.config import load_recipe
from fullfed.deployment.console import check_installed, say
from fullfed.deployment.federation_commands import FederationDirectory, federation

NodeDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A partner's folder.")]
Data = Annotated[
    str | None, typer.Option("--data", metavar="PATH", help="The partner's own training data.")
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="PATH", help="The partner's copy of the model.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program's."""
    app.add_typer(federation, name="federation", no_args_is_help=True)
    for command in (serve, join, start, status, simulate, worker):
        app.command()(command)


def serve(directory: FederationDirectory) -> None:
    """Run a federation's server (Flower's SuperLink)."""
    check_installed()
    from fullfed.deployment import serving
    from fullfed.deployment.server_folder import ServerFolder

    serving.serve(ServerFolder(directory), say)


def join(directory: NodeDirectory, data: Data = None, model: Model = None) -> None:
    """Take part in a federation (Flower's SuperNode and fullfed's worker)."""
    check_installed()
    from fullfed.deployment import joining
    from fullfed.deployment.node_folder import NodeFolder

    joining.join(NodeFolder(directory.absolute()), data, model, say)


def start(
    directory: FederationDirectory,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="The run's folder.")
    ] = None,
) -> None:
    """Carry out a recipe on a federation, or carry on where the run was stopped."""
    check_installed()
    from fullfed.deployment import starting
    from fullfed.deployment.server_folder import ServerFolder

    folder = ServerFolder(directory)
    path = out or folder.runs / recipe.stem
    summary = starting.start(folder, load_recipe(recipe, set_), path, say)
    _show_end(summary, path)


def status(directory: FederationDirectory) -> None:
    """Who is connected, and how far the runs are."""
    check_installed()
    from fullfed.deployment import flower
    from fullfed.deployment.run_files import ServerStatus
    from fullfed.deployment.server_folder import ServerFolder
    from fullfed.deployment.sockets import check_server
    from fullfed.runs.folder import RunFolder

    folder = ServerFolder(directory)
    settings = folder.settings()
    up = check_server(f"127.0.0.1:{settings.port}", folder.authority)
    states, nodes = flower.node_states(folder) if up else {}, flower.registered(folder)
    table = Table("client", "partner", "node", "state")
    for number, member in enumerate(folder.members()):
        node = nodes.get(member.key, "")
        table.add_row(str(number), member.name, node, states.get(node, "not registered"))
    say(f"server {'runs' if up else 'does not run'} at {settings.address}:{settings.port}")
    Console().print(table)
    for path in sorted(folder.runs.iterdir()) if folder.runs.exists() else ():
        run = RunFolder(path)
        done, rounds = len(run.metrics()), run.recipe().federation.rounds
        at_work = (
            "at work" if ServerStatus(path).alive else "ended" if done == rounds else "stopped"
        )
        say(f"{path}: {done} of {rounds} rounds, {at_work}")


def simulate(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="A new folder.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable."),
    ] = None,
) -> None:
    """Carry out a recipe in Flower's own simulation (Ray), by the app that a federation runs."""
    check_installed("ray", "simulation")
    from fullfed.deployment.simulating import simulate as carry_out

    _show_end(carry_out(load_recipe(recipe, set_), out, say), out)


def worker(directory: NodeDirectory, data: Data = None, model: Model = None) -> None:
    """A node's resident worker, which `fullfed join` runs."""
    check_installed()
    from fullfed.deployment.joining import LOG_FORMAT, configured
    from fullfed.deployment.node_folder import NodeFolder
    from fullfed.deployment.resident import Resident
    from fullfed.engines.flower.channel import serve as answer
    from fullfed.files import locked

    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    folder = NodeFolder(directory.absolute())
    settings = configured(folder, data, model)
    assert settings.data is not None  # configured sees to it
    with locked(folder.path / "worker.lock", f"{folder.path}: a worker runs here already; end it."):
        resident = Resident(folder.state, settings.data, settings.model, settings.device)
        answer(folder.worker_address, resident.handle)


def _show_end(summary: dict[str, Any], path: Path) -> None:
    from fullfed.reports.tables import summary_table

    Console().print(summary_table([summary]))
    say(f"model {summary['model_hash'][:16]}  written to {path}")
