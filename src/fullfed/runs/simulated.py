"""The engine of a run whose clients are simulated: their visits here, or in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from fullfed.child_processes import start
from fullfed.config import Recipe, SimulationTable
from fullfed.engines.parallel import ParallelSimulation
from fullfed.engines.simulation import simulate
from fullfed.engines.under_way import UnderWay
from fullfed.federation.client import Worker
from fullfed.federation.log import Log
from fullfed.federation.messages import encode
from fullfed.federation.method import Method
from fullfed.federation.server import Engine, Traffic
from fullfed.methods.composition import Composition
from fullfed.payloads import Payload
from fullfed.runs.environment import PeakMemory
from fullfed.runs.folder import RunFolder
from fullfed.runs.worker_process import work
from fullfed.training.trainer import OWN


@contextmanager
def simulation(
    recipe: Recipe,
    folder: RunFolder,
    method: Composition,
    worker: Worker,
    log: Log,
    traffic: Traffic,
    peaks: PeakMemory,
) -> Iterator[Engine]:
    """The engine that a recipe asks for; worker processes that it starts end with the context.

    Args:
        folder: of the run, which has begun.
        method: the run's.
        worker: the run's own replica, with everybody's data.
        peaks: are told what worker processes need of memory.
    """
    table = recipe.simulation
    own = recipe.trainer is not None and recipe.trainer.name == OWN
    trainer = method.setting.trainer if own else None
    device, threads = worker.replica.model.device, torch.get_num_threads()

    def start_worker(place: int) -> tuple[Connection, BaseProcess]:
        arguments = (folder.path, trainer, device_of(place, recipe, device), threads)
        return start(work, arguments, f"worker {place}")

    several = ParallelSimulation(
        worker,
        table.failures,
        recipe.federation.seed,
        traffic,
        log=log,
        snapshot=folder.snapshot_file,
        workers=table.workers,
        start=start_worker,
        on_peak=peaks.of_worker,
    )
    serial = nullcontext(simulate(recipe, worker, log, traffic))
    visiting: AbstractContextManager[Engine] = several if table.workers > 1 else serial
    with visiting as engine, closing(UnderWay(engine, worker.replica, folder.path)) as under_way:
        yield under_way


def plans_under_way(method: Method, version: int, rounds: int) -> dict[int, dict[int, Payload]]:
    """The encoded plans of the visits that have not ended when the model is at a version, by the
    one that they began from and by client; none after the last round."""
    found: dict[int, dict[int, Payload]] = {}
    for begun in range(version if version < rounds else 0):
        for plan in method.ahead(begun):
            if plan.round >= version:
                found.setdefault(begun, {})[plan.client] = encode(plan)
    return found


def device_of(place: int, recipe: Recipe, device: torch.device) -> str:
    """The device of a worker process: GPUs in turn, unless the recipe names one of them.

    Args:
        place: of the process, from 0 on.
        device: of the run's own process.
    """
    if device.type != "cuda" or recipe.model.device not in ("auto", "cuda"):
        return str(device)
    return f"cuda:{place % torch.cuda.device_count()}"


def threads_of(table: SimulationTable) -> int:
    """In how many threads torch computes in each of a simulation's processes."""
    return table.threads or max(torch.get_num_threads() // table.workers, 1)


@contextmanager
def computing_in(threads: int) -> Iterator[None]:
    """Inside, torch computes in so many threads in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
