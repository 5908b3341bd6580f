"""Runs whose visits are made in worker processes are, byte for byte, those of one process."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fullfed.config import SimulationTable
from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival
from fullfed.headway import Headway
from fullfed.runs import run, simulated
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from fullfed.runs.simulated import computing_in, device_of, threads_of
from runs.in_processes import gently, go
from runs.small import recipe
from runs.test_binding import put
from trials.subjects import StopAfter, StopError
from trials.workers import SUBJECTS, differences, disturbed, quick_starts, recipe_of


@pytest.fixture(autouse=True)
def started_quickly() -> Iterator[None]:
    with quick_starts():
        yield


class Watch(Callback):
    def __init__(self) -> None:
        self.trained: set[int | None] = set()

    def on_headway(self, version: int, headway: Headway) -> None:
        if headway.work == "train":
            self.trained.add(headway.client)


@pytest.mark.parametrize("name", SUBJECTS)
def test_two_workers_write_the_log_of_one(name: str, ingredients: Path, tmp_path: Path) -> None:
    """Whole lines too, but for seconds and memory, and what clients keep."""
    one, two, watch = tmp_path / "one", tmp_path / "two", Watch()
    run.start(recipe_of(name, ingredients, workers=1, rounds=4), one)
    run.start(recipe_of(name, ingredients, workers=2, rounds=4), two, [watch])
    assert not differences(two, one)
    assert verify(RunFolder(two))
    visited = {client for line in RunFolder(two).metrics() for client in line["aggregated"]}
    assert watch.trained == visited, "their headway is seen"
    most = [RunFolder(out).summary()["peak_memory_bytes"] for out in (one, two)]
    assert most[1] > most[0] + 2 * 100 * 2**20, "each process has all modules at least"


def test_workers_that_are_killed_leave_no_trace(ingredients: Path, tmp_path: Path) -> None:
    chance = random.Random(time.time_ns())
    assert not disturbed("residuals", ingredients, tmp_path, 2, chance, longest=0.3)


def children(pid: int) -> set[int]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            after_name = status.read_text().rpartition(")")[2].split()
            if int(after_name[1]) == pid and after_name[0] != "Z":
                found.add(int(status.parent.name))
    return found


def wait_for(there: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not there():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_run_that_is_killed_takes_its_workers_along_and_is_resumed(
    ingredients: Path, tmp_path: Path
) -> None:
    """A Ctrl-C, which a terminal sends to all processes, is not the workers' affair."""
    out = tmp_path / "out"
    process = multiprocessing.get_context("forkserver").Process(target=go, args=(ingredients, out))
    process.start()
    assert process.pid is not None
    lines = out / "metrics.jsonl"
    wait_for(lambda: lines.exists() and lines.stat().st_size > 0)
    workers = children(process.pid)
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    size = lines.stat().st_size
    wait_for(lambda: lines.stat().st_size > size)
    assert workers == children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.join()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    done = len(RunFolder(out).metrics())
    put(out, "federation.rounds", done + 3)
    run.resume(out)
    run.start(recipe_of("residuals", ingredients, workers=1, rounds=done + 3), tmp_path / "whole")
    assert not differences(out, tmp_path / "whole")


def test_an_interrupted_run_ends_its_workers(
    ingredients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, real = [], simulated.start

    def start(*arguments: Any) -> Any:
        connection, process = real(*arguments)
        started.append(process)
        return connection, process

    class Interrupt(Callback):
        def on_visit_end(self, round: int, arrival: Arrival) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(simulated, "start", start)
    with pytest.raises(KeyboardInterrupt):
        run.start(recipe_of("ferret", ingredients, workers=2), tmp_path / "run", [Interrupt()])
    assert len(started) == 2
    assert not any(process.is_alive() for process in started)


@pytest.mark.parametrize(
    ("privacy", "method"),
    [
        ({"secure_sum": True}, {"name": "ferret", "coordinates": 300, "seeds": "shared"}),
        ({"protects": "record", "noise": 1.0, "delta": 1e-3, "clip": 1.0}, {"name": "fedavg"}),
    ],
    ids=["secure sums", "noise for records"],
)
def test_clients_secrets_are_the_same_in_workers(
    privacy: dict[str, Any], method: dict[str, Any], ingredients: Path, tmp_path: Path
) -> None:
    """Two runs never have the same secrets, so one run is carried on in two ways."""
    chosen = recipe(
        ingredients,
        method=method,
        privacy=privacy,
        federation={"clients_per_round": 4},
        aggregation={"name": "mean", "weights": "equal"},
        local={"learning_rate": 0.02},
        simulation={"threads": 1},
    )
    one, two = tmp_path / "one", tmp_path / "two"
    with pytest.raises(StopError):
        run.start(chosen, one, [StopAfter(1)])
    shutil.copytree(one, two)
    put(two, "simulation.workers", 2)
    for out in (one, two):
        run.resume(out)
    assert not differences(two, one)


def test_a_trainer_that_a_program_brings_is_sent_or_refused(
    ingredients: Path, tmp_path: Path
) -> None:
    two = {"workers": 2, "threads": 1}
    run.start(recipe(ingredients), tmp_path / "one", trainer=gently)
    run.start(recipe(ingredients, simulation=two), tmp_path / "two", trainer=gently)
    logs = [(tmp_path / name / "updates.log").read_bytes() for name in ("one", "two")]
    assert logs[0] == logs[1]
    with pytest.raises(UserError, match=r"simulation\.workers: .*at the top of a file"):
        run.start(recipe(ingredients, simulation=two), tmp_path / "three", trainer=lambda *a: None)  # type: ignore[arg-type,return-value]
    assert not (tmp_path / "three").exists()


def test_threads_are_shared_out_unless_the_recipe_says_how_many() -> None:
    before = torch.get_num_threads()
    with computing_in(5):
        assert [threads_of(SimulationTable(workers=n)) for n in (1, 2, 6)] == [5, 2, 1]
        assert threads_of(SimulationTable(workers=2, threads=4)) == 4
    assert torch.get_num_threads() == before


def test_threads_beyond_any_machine_are_refused() -> None:
    """Torch takes so many for its word, and asks for memory for each."""
    with pytest.raises(ValidationError, match="1024"):
        SimulationTable(threads=10**9)


def test_gpus_are_dealt_out_in_turn(ingredients: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    auto, first = recipe(ingredients), recipe(ingredients, model={"device": "cuda:0"})
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [device_of(n, auto, gpu) for n in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [device_of(n, first, torch.device("cuda:0")) for n in range(2)] == ["cuda:0"] * 2
    assert device_of(1, auto, cpu) == "cpu"
