"""Runs on Flower: starting and following one, and what its server and its nodes do.

A run's folder is on the server, and its log is the run. A ServerApp that was killed leaves it
whole, and the next one goes on.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fullfed.config import Recipe
from fullfed.config_data import ColumnsTable
from fullfed.data.federated import refuse_empty
from fullfed.data.sources import read_examples
from fullfed.data.tokens import PackedExamples, Untokenized, tokenize
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
from fullfed.engines.node import NodeTask
from fullfed.engines.node_limits import Limits, RefusalError
from fullfed.engines.node_messages import (
    Answer,
    Frames,
    Order,
    TaskSettings,
    decode_settings,
    encode_settings,
    recipe_hash,
)
from fullfed.errors import UserError
from fullfed.federation.client import Worker
from fullfed.federation.log import Log, read_log
from fullfed.federation.messages import Plan, decode
from fullfed.federation.server import Engine, Traffic
from fullfed.files import private_files
from fullfed.runs.assembly import (
    Assembly,
    Choices,
    assemble,
    assemble_server,
    build_method,
    check_examples,
    check_records,
    choose,
    make_replica,
    make_worker,
    resolved,
    settled,
)
from fullfed.runs.binding import check_bound
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.loading import (
    check_cohort,
    check_tokens,
    find_device,
    load_blank,
    load_model,
    max_tokens,
)
from fullfed.runs.progress import describe_round
from fullfed.runs.rollback import finish_rollback, targets
from fullfed.runs.run import carry_out
from fullfed.training.trainer import Trainer

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
    with running_superlink(commands, home, partial(listens, port), say):
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
        settings = encode_settings(recipe, len(keys()), folder.base()["model_hash"])
        table, back = recipe.deployment, targets(folder)
        return FlowerEngine(grid, run, keys, settings, worker, log, traffic, table, back)

    quorum = assembly.recipe.deployment.quorum
    carry_out(folder, assembly, callbacks, connect, quorum, samples, name=run)


# The nodes' part


class TaskLoader:
    """Makes a run's task of its settings and of what a node has itself.

    Args:
        data: the node's own training data, as read_examples takes it.
        model: the node's copy of the base model: a folder, a hub name or "builtin".
        device: a torch device, or "auto".
        limits: what the node's owner allows.
        columns, ignore: of the data's fields, as read_examples takes them.
        trainer: the owner's own, in the place of the run's.

    Raises:
        UserError: the data cannot be read.
    """

    def __init__(
        self,
        data: str,
        model: str,
        device: str = "auto",
        limits: Limits | None = None,
        columns: ColumnsTable | None = None,
        ignore: Sequence[str] = (),
        trainer: Trainer | None = None,
    ) -> None:
        self._data, self._model, self._device = data, model, device
        self._trainer = trainer
        self._limits = limits or Limits()
        self._examples = read_examples(data, columns=columns, ignore=ignore)

    def __call__(self, settings: bytes, has_replica: bool) -> Callable[[], NodeTask]:
        """See engines.node.LoadTask."""
        try:
            told = decode_settings(settings, self._model, self._device, self._data)
            _log.info("%s%s, its base model %s", RECIPE, told.recipe_hash, told.base_hash)
            self._limits.check_settings(told, has_replica)
            self._limits.check_work(told.recipe.local, len(self._examples))
            choices = choose(told.recipe, self._trainer)
            check_examples(told.recipe, self._examples)
            check_records(told.recipe, len(self._examples))
        except RefusalError:
            raise
        except UserError as error:
            raise RefusalError(str(error), "the run's settings do not fit this node") from error
        return partial(self._load, told, choices, has_replica)

    def _load(self, told: TaskSettings, choices: Choices, has_replica: bool) -> NodeTask:
        recipe, base = told.recipe, told.recipe.model
        if has_replica:
            model, tokenizer = load_model(base.path, base.dtype, base.device)
        else:
            model, tokenizer = load_blank(base.path)
        _log.info("model %s loaded", base.path)
        length = max_tokens(recipe, model)
        table = recipe.data
        own = tokenize(self._examples, tokenizer, table.template, length, table.date, table.answers)
        if not own.examples:
            raise UserError(
                f"{self._data}: no example's answer fits into {length} tokens; "
                "leave the node out of this run."
            )
        refuse_empty(self._data, [own])
        check_tokens(model, own.examples)
        changed = own.shortened, own.dropped, own.empty
        _log.info("%d prompts shortened, %d samples left out, %d answers empty", *changed)
        self._limits.check_work(recipe.local, len(own.examples))
        loaded = {parameter.data_ptr() for parameter in model.parameters()}
        method = build_method(recipe, choices, model, told.clients)
        replicated = method.replicated(model).items()
        known = frozenset(name for name, tensor in replicated if tensor.data_ptr() in loaded)
        replica = make_replica(recipe, model, method) if has_replica else None
        if replica is not None and replica.content_hash() != told.base_hash:
            raise RefusalError(
                f"{self._model}: this is not the base model the run begins with; "
                "name the right one by `fullfed join --model`.",
                "its base model is not the one the run begins with",
            )
        device, every = find_device(base.device), recipe.federation.snapshot_every
        source = None
        if choices.trainer is not None:
            words = self._examples, tokenizer, table.template, table.answers
            source = Untokenized.of(own, *words)
        examples = PackedExamples(own.examples, source)
        return NodeTask(model, method, replica, examples, device, every, known)


class SimulatedNode:
    """Answers orders for all clients of a run, in a process of Flower's own simulation.

    Flower keeps such processes from one message to the next, and has several at once. Each holds
    one replica; as they share the server's disk, a process that did not get the last order catches
    up from the run's log.

    Raises:
        UserError: the run's recipe cannot be carried out.
    """

    def __init__(self, run: Path) -> None:
        folder = RunFolder(run)
        assembly = assemble(folder.recipe())
        replica = make_replica(assembly.recipe, assembly.model, assembly.method)
        self._worker = make_worker(assembly, replica, folder.states())
        self._log_file = folder.log_file

    def handle(self, frames: Frames) -> Mapping[str, bytes]:
        """Answer one order."""
        order = Order.of(frames)
        plan = decode(order.plan, Plan)
        if not order.submodel:
            self._catch_up(order, plan.round)
        arrival = self._worker.visit(order.plan, order.submodel)
        seconds = arrival.train_seconds, arrival.encode_seconds
        return Answer(plan.round, arrival.payload or b"", arrival.failure, *seconds).frames()

    def _catch_up(self, order: Order, version: int) -> None:
        replica, known = self._worker.replica, dict(enumerate(order.updates, order.first))
        while replica.version < version:
            number = version - 1 if replica.method.cumulative else replica.version
            if number not in known:
                known = dict(enumerate(islice(read_log(self._log_file), number, None), number))
            self._worker.deliver(known[number])


simulated_node = lru_cache(maxsize=1)(SimulatedNode)  # one for this process
