"""Visits in several processes: who gets which, what is counted, and what becomes of the dead.

The processes are threads here, which end when a test says so; tests/runs/test_workers.py has real
ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fullfed.engines.parallel import ParallelSimulation
from fullfed.engines.simulation import Simulation
from fullfed.engines.worker_messages import SNAPSHOT, UPDATE, VISIT, Failed, Ready, Told, Visited
from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival
from fullfed.federation.log import Log
from fullfed.federation.messages import Plan, Update, decode, encode
from fullfed.federation.server import Traffic, run_round
from fullfed.headway import Headway
from methods.tiny import Federation, make_ferret, samples, setting, tiny_model

CLIENTS = 4


class ThreadProcess:
    """What a simulation asks of a process, of a thread that has ended with a code."""

    def __init__(self, target: Callable[[], int]) -> None:
        self.exitcode: int | None = None
        self._thread = threading.Thread(target=lambda: self._end(target()), daemon=True)
        self._thread.start()

    def _end(self, code: int) -> None:
        self.exitcode = code

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()

    def kill(self) -> None:
        pass  # its connection is closed next, which ends it


def federation() -> Federation:
    model = tiny_model()
    method = make_ferret(setting(model, clients=CLIENTS), coordinates=30)
    return Federation(model, method, [samples(4, seed=n) for n in range(CLIENTS)])


class Workers:
    """Starts threads that visit as worker processes do.

    Args:
        ends: says whether one ends instead of a visit, by its place and the visit's client.

    Attributes:
        visited: (place, client) of each visit that was made.
    """

    def __init__(self, ends: Callable[[int, int], bool] = lambda place, client: False) -> None:
        self._ends = ends
        self.visited: list[tuple[int, int]] = []
        self.snapshot = Path("there is none")

    def start(self, place: int) -> tuple[Connection, Any]:
        ours, theirs = Pipe()
        worker = federation().worker

        def target() -> int:
            with theirs:
                theirs.send(Ready())
                try:
                    while True:
                        kind, content = theirs.recv_bytes(), theirs.recv_bytes()
                        if kind == UPDATE:
                            worker.deliver(content)
                            continue
                        if kind == SNAPSHOT:
                            worker.last = decode(content, Update)
                            worker.replica.load_snapshot(self.snapshot)
                            continue
                        assert kind == VISIT
                        client = decode(content, Plan).client
                        if self._ends(place, client):
                            return -9
                        self.visited.append((place, client))
                        theirs.send(Told(Headway("train", 1, 2, client=client), 0.5))
                        arrival = worker.visit(content)
                        without = replace(arrival, payload=None)
                        theirs.send(Visited(without, True, 10 + place, 100 + place))
                        assert arrival.payload is not None
                        theirs.send_bytes(arrival.payload)
                except (EOFError, OSError):
                    return 0

        return ours, ThreadProcess(target)


def parallel(
    ours: Federation, log: Log, workers: Workers, count: int = 2, **changes: Any
) -> ParallelSimulation:
    usual: dict[str, Any] = {
        "log": log,
        "snapshot": workers.snapshot,
        "workers": count,
        "start": workers.start,
        "on_peak": lambda place, peak, overall: None,
    }
    return ParallelSimulation(ours.worker, **{**usual, **changes})


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_a_run_is_the_serial_one_for_any_number_of_workers(count: int, tmp_path: Path) -> None:
    """With failures, and every client's traffic."""
    serial, ours = federation(), federation()
    with Log(tmp_path / "log") as log, Log(tmp_path / "serial") as other:
        traffics = [Traffic(which, lambda: 10**6) for which in (other, log)]
        one = Simulation(serial.worker, 0.3, 9, traffics[0])
        workers = Workers()
        with parallel(ours, log, workers, count, failures=0.3, seed=9, traffic=traffics[1]) as two:
            for number in range(6):
                results = [
                    run_round(fed.method, engine, number, fed.last, fed.model)
                    for fed, engine in ((serial, one), (ours, two))
                ]
                for fed, to, result in zip((serial, ours), (other, log), results, strict=True):
                    to.append(encode(result.update))
                    fed.worker.deliver(encode(result.update))
                for what in ("aggregated", "refused", "up", "down", "loss"):
                    assert getattr(results[0], what) == getattr(results[1], what)
        assert log.digest == other.digest
        assert {place for place, _ in workers.visited} <= set(range(count))
        assert len({place for place, _ in workers.visited}) > 1 or count == 1


@pytest.mark.parametrize("later", [0, 1])
def test_a_process_begins_with_the_snapshot_where_the_log_has_no_older_updates(
    tmp_path: Path, later: int
) -> None:
    serial, ours, workers = federation(), federation(), Workers()
    workers.snapshot = tmp_path / "snapshot"
    with Log(tmp_path / "log") as log:
        for number in range(3 + later):
            simulation = Simulation(serial.worker)
            result = run_round(serial.method, simulation, number, serial.last, serial.model)
            log.append(encode(result.update))
            for each in (serial, ours):
                each.worker.deliver(encode(result.update))
            if number == 2:
                ours.worker.replica.save_snapshot(workers.snapshot)
        log.leave_out(before=2)
        plans = {p.client: encode(p) for p in ours.method.plans(3 + later, ours.last)}
        with parallel(ours, log, workers) as engine:
            arrivals = {arrival.sender: arrival.payload for arrival in engine.exchange(plans)}
    expected = Simulation(serial.worker).exchange(plans)
    assert arrivals == {arrival.sender: arrival.payload for arrival in expected}


def plans_of(ours: Federation) -> dict[int, bytes]:
    return {plan.client: encode(plan) for plan in ours.method.plans(0, None)}


def test_a_visit_is_made_once_more_when_its_process_ends(tmp_path: Path) -> None:
    ours, ended = federation(), list[int]()

    def ends(place: int, client: int) -> bool:
        ended.append(client)
        return client in (1, 3) and ended.count(client) == 1

    with Log(tmp_path / "log") as log, parallel(ours, log, Workers(ends)) as engine:
        arrivals = list(engine.exchange(plans_of(ours)))
    expected = Simulation(federation().worker).exchange(plans_of(ours))
    by_client = {arrival.sender: arrival.payload for arrival in arrivals}
    assert len(arrivals) == CLIENTS
    assert by_client == {arrival.sender: arrival.payload for arrival in expected}
    assert sorted(ended) == [0, 1, 1, 2, 3, 3]


def test_a_visit_that_ends_its_process_twice_has_failed(tmp_path: Path) -> None:
    ours = federation()
    workers = Workers(lambda place, client: client == 2)
    with Log(tmp_path / "log") as log, parallel(ours, log, workers) as engine:
        arrivals = {arrival.sender: arrival for arrival in engine.exchange(plans_of(ours))}
    assert arrivals.keys() == set(range(CLIENTS))
    failed = arrivals.pop(2)
    assert failed.payload is None
    assert failed.failure == "the worker process of its visit was ended by SIGKILL, 2 times"
    assert failed.down == len(plans_of(ours)[2])
    assert not failed.drawn
    assert all(arrival.payload for arrival in arrivals.values())


def saying(*said: object) -> Callable[[int], tuple[Connection, Any]]:
    """Starts what says so much and ends."""

    def start(place: int) -> tuple[Connection, Any]:
        ours, theirs = Pipe()

        def target() -> int:
            with theirs, suppress(BrokenPipeError):  # the run may have ended by then
                for one in said:
                    theirs.send(one)
            return 1

        return ours, ThreadProcess(target)

    return start


@pytest.mark.parametrize(
    ("start", "error", "text"),
    [
        (saying(), UserError, "a worker process ended with code 1 before it was ready, 2 times"),
        (saying(Failed("the disk is full.", True)), UserError, "the disk is full."),
        (saying(Ready(), Failed("Traceback: x", False)), RuntimeError, "process:\nTraceback: x"),
    ],
)
def test_what_no_other_process_would_do_better_ends_the_run(
    start: Any, error: type[Exception], text: str, tmp_path: Path
) -> None:
    ours = federation()
    with (
        Log(tmp_path / "log") as log,
        parallel(ours, log, Workers(), start=start) as engine,
        pytest.raises(error, match=text),
    ):
        list(engine.exchange(plans_of(ours)))


def test_headway_and_memory_of_the_workers_are_told(tmp_path: Path) -> None:
    ours, heard, peaks = federation(), list[Headway](), list[tuple[int, int | None, int]]()
    ours.worker.observer = heard.append
    with Log(tmp_path / "log") as log, parallel(ours, log, Workers()) as engine:
        engine.on_peak = lambda *about: peaks.append(about)
        arrivals: list[Arrival] = list(engine.exchange(plans_of(ours)))
    assert sorted(headway.client or 0 for headway in heard) == [0, 1, 2, 3]
    assert all(headway.loss is not None and headway.loss() == 0.5 for headway in heard)
    assert len(peaks) == len(arrivals)
    assert set(peaks) == {(0, 10, 100), (1, 11, 101)}
