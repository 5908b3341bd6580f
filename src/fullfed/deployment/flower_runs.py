"""Runs on Flower: starting and following one, and what its server and its nodes do.

A run's folder is on the server, and its log is the run. A ServerApp that was killed leaves it
whole, and the next one goes on.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fullfed.config import Recipe
from fullfed.deployment.absences import Absences
from fullfed.deployment.folders import CONTROL_KEY, ServerFolder
from fullfed.deployment.members import (
    Members,
    fix_members,
    read_federation,
    read_members,
    write_federation,
)
from fullfed.deployment.meter import Meter, PartnerLimits
from fullfed.deployment.node import RECIPE
from fullfed.deployment.processes import (
    Print,
    check_server,
    executor,
    free_port,
    listens,
    pause,
    simulating_superlink,
)
from fullfed.deployment.run_audit import RunAudit, record_start
from fullfed.deployment.server import START_SECONDS, configure, running_superlink, submit, write_app
from fullfed.deployment.status import ServerStatus
from fullfed.engines.flower import FlowerEngine
from fullfed.engines.node_messages import encode_settings, recipe_hash
from fullfed.errors import UserError
from fullfed.federation.client import Worker
from fullfed.federation.log import Log
from fullfed.federation.server import Engine, Traffic
from fullfed.files import private_files
from fullfed.runs.assembly import (
    Assembly,
    assemble,
    assemble_server,
    choose,
    resolved,
    settled,
)
from fullfed.runs.binding import check_bound
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.loading import check_cohort
from fullfed.runs.progress import describe_round
from fullfed.runs.rollback import finish_rollback, targets
from fullfed.runs.run import carry_out

_log = logging.getLogger(__name__)


@private_files()
def start(folder: ServerFolder, recipe: Recipe, path: Path, say: Print) -> dict[str, Any]:
    """Begin a run, or carry on the one in the folder; follow it to its end; return the summary.

    Raises:
        UserError: the recipe is bad, the server is not there, or the run stops.
    """
    run = RunFolder(path.absolute())
    status = ServerStatus(run.path)
    if not status.alive:
        finish_rollback(run)
    begun = run.begun  # where a run did not, another recipe may mend what was wrong
    chosen = _chosen(folder, recipe, read_members(run.path) if begun else None)
    chosen = settled(chosen, run.recipe().data.date if begun else None)
    if begun:
        check_bound(chosen, run.base()["recipe"], path)
    if status.alive and run.recipe() != chosen:
        raise UserError(f"{path}: the run is at work on another recipe; wait for its end.")
    if run.summary_file.exists() and run.summary()["rounds"] == chosen.federation.rounds:
        return run.summary()
    if not check_server(folder.local_address, folder.authority):
        raise UserError(
            f"{folder.federation}: the server does not run; "
            f"run `fullfed serve {folder.federation}`."
        )
    _compare_models(chosen.model.path, folder.settings().model, say)
    members = read_members(run.path) if status.alive else None
    if members is None:
        if not run.recipe_file.exists():
            run.create(chosen)
        else:
            run.write_recipe(chosen)
        members = fix_members(run.path, folder.partners(), anew=not begun)
        write_federation(run.path, folder.federation)
        run.summary_file.unlink(missing_ok=True)  # of fewer rounds
        status.clear()
        write_app(folder.app)
        record_start(folder.audit, run, members, _recipe_hash(run, members))
        submit(folder.flower, folder.app, run.path, say)
    say(f"{RECIPE}{_recipe_hash(run, members)}")
    absences = Absences.of(folder, members.clients, say)
    return follow(run, folder.superlink_log, say, absences)


def _recipe_hash(run: RunFolder, members: Members) -> str:
    """What owners of nodes may have agreed on."""
    return recipe_hash(encode_settings(run.recipe(), len(members.clients), base_hash=""))


def _compare_models(path: str, told: str, say: Print) -> None:
    """Say if a recipe's model has not the name of the federation's: nodes would refuse it."""
    if Path(path).name != Path(told).name:
        say(
            f"note: the recipe's model is {path}, and federation.toml told partners {told}; a node "
            "takes no part with another one than the recipe's"
        )


def _chosen(folder: ServerFolder, recipe: Recipe, members: Members | None) -> Recipe:
    """The recipe as the run's folder is to have it, checked as far as that needs no model.

    Args:
        members: of a run that has begun; None for those that a new one would have.
    """
    chosen = resolved(recipe, choose(recipe))
    partners = len(members.clients if members else folder.settings().partners)
    check_cohort(chosen, partners, f"the federation has only {partners} partners")
    return chosen


def simulate(recipe: Recipe, path: Path, say: Print) -> dict[str, Any]:
    """Carry out a recipe in Flower's own simulation, into a new folder; return the summary.

    Raises:
        UserError: bad input, or the run stops.
    """
    if recipe.privacy is not None:
        raise UserError(
            "privacy: processes of Flower's simulation share no secrets from one message to the "
            "next; take `fullfed run`, or a real federation."
        )
    assembly, run = assemble(recipe), RunFolder(path.absolute())
    run.create(assembly.recipe)
    home, app, port = run.path / "flower", run.path / "app", free_port()
    write_app(app)
    configure(home, port, None, Meter({}, PartnerLimits()))
    commands = simulating_superlink(home, port), executor(home / CONTROL_KEY, port, None)
    with running_superlink(commands, home, partial(listens, port), say, trains=True):
        submit(home, app, run.path, say, simulated=len(assembly.data.clients))
        return follow(run, home / "superlink.log", say)


def follow(
    run: RunFolder, superlink_log: Path, say: Print, absences: Absences | None = None
) -> dict[str, Any]:
    """Tell of a run's rounds until it ends; return the summary.

    Args:
        absences: tells of partners that are not connected; None where nodes are simulated.

    Raises:
        UserError: it does not begin, or stops.
    """
    status = ServerStatus(run.path)
    rounds, told = run.recipe().federation.rounds, len(run.metrics())
    ends = time.monotonic() + START_SECONDS
    while not status.begun:
        if time.monotonic() > ends:
            raise UserError(f"{superlink_log}: Flower does not start the run; the log says why.")
        pause()
    while True:
        alive = status.alive  # before looking, so that nothing written last is missed
        for record in run.metrics()[told:]:
            say(describe_round(record, rounds))
            told += 1
        if run.summary_file.exists():
            return run.summary()
        if status.error is not None:
            raise UserError(status.error)
        if not alive:
            raise UserError(
                f"{run.path}: the run's process has died after round {told}; the same command "
                f"carries it on ({superlink_log} may say why)."
            )
        if absences is not None:
            absences.look()
        pause()


# The ServerApp's part


def carry_on(grid: Grid, path: Path) -> None:
    """Carry the run in a folder on to its end.

    Raises:
        UserError: another process does, or the run stops.
    """
    folder = RunFolder(path)
    with ServerStatus(path).held():
        recipe, members, federation = folder.recipe(), read_members(path), read_federation(path)
        if members is None or federation is None:
            # In Flower's simulation, where nodes know all that this process knows.
            assembly = assemble(recipe)
            known = sorted(node.public_key for node in grid.get_nodes())
            keys = known[: len(assembly.data.clients)]
            _lead(grid, folder, assembly, secrets.token_hex(8), lambda: keys)
            return
        server = ServerFolder(federation)
        with RunAudit(server.audit, members) as audit:
            assembly = assemble_server(recipe, len(members.clients))
            keys_now = partial(server.keys_of, members.clients)
            _lead(grid, folder, assembly, members.run, keys_now, members.samples(), [audit])


def _lead(
    grid: Grid,
    folder: RunFolder,
    assembly: Assembly,
    run: str,
    keys: Callable[[], Sequence[bytes]],
    samples: Mapping[int, int] | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Carry a run on over Flower's Grid.

    Args:
        run: its name.
        keys: each client's public key as it is now, as the SuperLink knows it.
        samples: those declared, by client.
    """

    def connect(recipe: Recipe, worker: Worker, log: Log, traffic: Traffic) -> Engine:
        hashes = folder.base()["model_hash"], folder.scales_hash
        settings = encode_settings(recipe, len(keys()), *hashes)
        table, back = recipe.deployment, targets(folder)
        counted = {client: r["round"] for r in folder.metrics() for client in r["aggregated"]}
        return FlowerEngine(grid, run, keys, settings, worker, log, traffic, table, back, counted)

    quorum = assembly.recipe.deployment.quorum
    carry_out(folder, assembly, callbacks, connect, quorum, samples, name=run)
