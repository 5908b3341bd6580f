"""The ServerApp: fullfed's own round loop over Flower's Grid, on the state in a run's folder.

The folder's log is the run. A ServerApp that was killed leaves it whole, and the next one goes on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fullfed.config import Recipe
from fullfed.deployment.run_files import RUN, Members, MembersFile, ServerStatus
from fullfed.deployment.terms import encode_terms
from fullfed.engines.flower.engine import FlowerEngine, Membership
from fullfed.federation.log import Log
from fullfed.federation.rounds import Engine
from fullfed.federation.traffic import Traffic
from fullfed.federation.worker import Worker
from fullfed.runs.assembly import Assembly, assemble, assemble_server
from fullfed.runs.folder import RunFolder
from fullfed.runs.run import carry_out


def main(grid: Grid, context: Context) -> None:
    """Carry the run in the folder on to its end."""
    folder = RunFolder(Path(str(context.run_config[RUN])))
    members = MembersFile(folder.path)
    with ServerStatus(folder.path).held():
        if members.path.exists():
            _deploy(grid, folder, members.read())
        else:
            _simulate(grid, folder)


def _deploy(grid: Grid, folder: RunFolder, members: Members) -> None:
    """The run of a federation whose nodes have the data."""
    keys = [client.key.encode() for client in members.clients]

    def membership(recipe: Recipe) -> Membership:
        terms = encode_terms(recipe, len(keys), folder.base()["model_hash"])
        return Membership(members.run, keys, terms)

    _carry_out(grid, folder, assemble_server(folder.recipe(), len(keys)), membership)


def _simulate(grid: Grid, folder: RunFolder) -> None:
    """A run in Flower's simulation, whose nodes know all that this process knows."""
    assembly = assemble(folder.recipe())
    keys = sorted(node.public_key for node in grid.get_nodes())
    membership = Membership(secrets.token_hex(8), keys[: len(assembly.data.clients)], b"")
    _carry_out(grid, folder, assembly, lambda recipe: membership)


def _carry_out(
    grid: Grid, folder: RunFolder, assembly: Assembly, membership: Callable[[Recipe], Membership]
) -> None:
    """
    Args:
        membership: is asked once the base model has been measured.
    """

    def connect(recipe: Recipe, worker: Worker, log: Log, traffic: Traffic) -> Engine:
        return FlowerEngine(grid, membership(recipe), worker, log, traffic, recipe.deployment)

    carry_out(folder, assembly, connect=connect, quorum=assembly.recipe.deployment.quorum)


app = ServerApp()
app.main()(main)
