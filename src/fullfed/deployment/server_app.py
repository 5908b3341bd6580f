"""The ServerApp: fullfed's own round loop over Flower's Grid, on the state in a run's folder.

The folder's log is the run. A ServerApp that was killed leaves it whole, and the next one goes on.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fullfed.deployment.run_files import RUN, MembersFile, ServerStatus
from fullfed.deployment.terms import encode_terms
from fullfed.engines.flower.engine import FlowerEngine, Membership
from fullfed.federation.log import Log
from fullfed.federation.recipe import Recipe
from fullfed.federation.rounds import Engine
from fullfed.federation.traffic import Traffic
from fullfed.federation.worker import Worker
from fullfed.runs.assembly import assemble_server
from fullfed.runs.folder import RunFolder
from fullfed.runs.run import carry_out


def main(grid: Grid, context: Context) -> None:
    """Carry the run in the folder on to its end."""
    folder = RunFolder(Path(str(context.run_config[RUN])))
    with ServerStatus(folder.path).held():
        _carry_out(grid, folder)


def _carry_out(grid: Grid, folder: RunFolder) -> None:
    members = MembersFile(folder.path).read()
    assembly = assemble_server(folder.recipe(), len(members.clients))

    def connect(recipe: Recipe, worker: Worker, log: Log, traffic: Traffic) -> Engine:
        terms = encode_terms(recipe, len(members.clients), folder.base()["model_hash"])
        keys = [client.key.encode() for client in members.clients]
        membership = Membership(members.run, keys, terms)
        return FlowerEngine(grid, membership, worker, log, traffic, recipe.deployment)

    carry_out(folder, assembly, connect=connect, quorum=assembly.recipe.deployment.quorum)


app = ServerApp()
app.main()(main)
