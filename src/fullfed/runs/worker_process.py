"""A process that makes visits for a run in another one, on a replica of its own."""

from __future__ import annotations

import time
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from fullfed.child_processes import end_with_parent
from fullfed.engines.worker_messages import SNAPSHOT, UPDATE, VISIT, Failed, Ready, Told, Visited
from fullfed.errors import UserError
from fullfed.federation.client import Worker
from fullfed.federation.messages import Update, decode
from fullfed.headway import Headway
from fullfed.methods.summing import keyed
from fullfed.payloads import Payload
from fullfed.runs.assembly import assemble, make_replica, make_worker
from fullfed.runs.budget import Budget
from fullfed.runs.curvature import with_scales_of
from fullfed.runs.environment import PeakMemory
from fullfed.runs.folder import RunFolder
from fullfed.runs.owners import name_of, with_owners
from fullfed.training.trainer import Trainer

_EVERY = 0.2  # seconds between two words of a visit's headway, for each of which its loss is read


def work(
    path: Path, trainer: Trainer | None, device: str, threads: int, connection: Connection
) -> None:
    """Make visits until the other end is closed, or the process at it has ended.

    Args:
        path: the run's folder.
        trainer: the clients', where the run was given one.
        device: to train on.
        threads: of torch.
        connection: to the run's process.
    """
    end_with_parent()
    torch.set_num_threads(threads)
    try:
        folder = RunFolder(path)
        worker = load_worker(folder, trainer, device)
        worker.observer = _Headway(connection)
        connection.send(Ready())
        serve(folder, worker, connection)
    except UserError as error:
        connection.send(Failed(str(error), is_users=True))
    except ConnectionError:
        pass  # nobody is there any more
    except Exception:
        # The last resort at the edge of the process; the run's own process raises it anew.
        connection.send(Failed(traceback.format_exc(), is_users=False))


def load_worker(folder: RunFolder, trainer: Trainer | None, device: str) -> Worker:
    """The run's replica at version 0 with everybody's data, as the run's own process has them.

    Reports are as clients make them: what only sums are known of is added up elsewhere.

    Raises:
        UserError: model or data are not those that the run began with.
    """
    recipe = folder.recipe()
    here = recipe.model.model_copy(update={"device": device})
    assembly = assemble(recipe.model_copy(update={"model": here}), trainer)
    method = assembly.method
    if method.sums is not None or method.protects_records:
        method = keyed(method, folder.secret())
    assembly = replace(assembly, method=with_scales_of(folder, method))
    replica = make_replica(assembly.recipe, assembly.model, assembly.method)
    folder.check_base_model(recipe, replica.content_hash())
    folder.check_data(recipe, assembly.data.content_hash())
    samples = {n: len(client.examples) for n, client in enumerate(assembly.data.clients)}
    budget = Budget.of(folder, recipe.privacy, assembly.method, samples)
    owned, _ = with_owners(assembly, folder, name_of(assembly, folder), budget)
    return make_worker(owned, replica, folder.states_of_visits())


def serve(folder: RunFolder, worker: Worker, connection: Connection) -> None:
    """Do what the other end says until it is closed.

    Raises:
        ConnectionError: it was closed while this end spoke.
        UserError: the replica cannot be brought up to date, or a client's state is damaged.
    """
    peaks = PeakMemory()
    while True:
        try:
            kind, content = connection.recv_bytes(), connection.recv_bytes()
        except EOFError:
            return
        if kind == UPDATE:
            worker.deliver(content)
        elif kind == SNAPSHOT:
            last = decode(content, Update)
            worker.replica.load_snapshot(folder.snapshot_file, folder.run(), last.round + 1)
            worker.last = last
        elif kind == VISIT:
            _visit(worker, content, connection, peaks)


def _visit(worker: Worker, plan: Payload, connection: Connection, peaks: PeakMemory) -> None:
    peaks.begin("visit")
    arrival = worker.visit(plan)
    peak, payload = peaks.end()["visit"], arrival.payload
    without = replace(arrival, payload=None)
    connection.send(Visited(without, payload is not None, peak, peaks.overall))
    if payload is not None:
        connection.send_bytes(payload)


class _Headway:
    """An observer that tells the run's process how a visit is getting on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told = 0.0

    def __call__(self, headway: Headway) -> None:
        now = time.monotonic()
        if headway.done == 0 or now - self._told >= _EVERY:
            loss = None if headway.loss is None else headway.loss()
            self._connection.send(Told(replace(headway, loss=None), loss))
            self._told = now
