"""The processes of a comparison: so many at once, each with its share of the threads."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Task(NamedTuple):
    """What one process does: a run with a seed, or, without one, a method's search."""

    label: str
    seed: int | None = None

    def __str__(self) -> str:
        return f"{self.label} {'search' if self.seed is None else f'seed {self.seed}'}"


class Watcher(Protocol):
    """Is told how a comparison is getting on."""

    def stage(self, name: str, tasks: int) -> None:
        """So many tasks of one kind come next."""

    def begin(self, task: Task) -> None:
        """A process starts."""

    def progress(self, task: Task, done: int, total: int, text: str) -> None:
        """A visit is over, ``done`` of ``total``."""

    def line(self, task: Task, text: str) -> None:
        """Something is worth keeping."""

    def end(self, task: Task, failure: str | None) -> None:
        """A process has ended."""


class Silence:
    """A Watcher that says nothing."""

    def stage(self, name: str, tasks: int) -> None: ...

    def begin(self, task: Task) -> None: ...

    def progress(self, task: Task, done: int, total: int, text: str) -> None: ...

    def line(self, task: Task, text: str) -> None: ...

    def end(self, task: Task, failure: str | None) -> None: ...


def carry_out(
    tasks: Sequence[Task], folder: Path, jobs: int, threads: int, lock: int, watcher: Watcher
) -> dict[Task, str]:
    """Carry out every task in a process of its own; return why some of them failed.

    An interruption ends the processes before it is passed on; what they have done is kept.

    Args:
        folder: the comparison's.
        jobs: processes at once.
        threads: of torch in each.
        lock: a descriptor that the processes hold open.
    """
    return asyncio.run(_carry_out(tasks, folder, jobs, threads, lock, watcher))


async def _carry_out(
    tasks: Sequence[Task], folder: Path, jobs: int, threads: int, lock: int, watcher: Watcher
) -> dict[Task, str]:
    slots = asyncio.Semaphore(jobs)
    failures: dict[Task, str] = {}

    async def one(task: Task) -> None:
        async with slots:
            watcher.begin(task)
            failure = await _follow(task, folder, threads, lock, watcher)
            watcher.end(task, failure)
            if failure is not None:
                failures[task] = failure

    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(one(task))
    return failures


async def _follow(
    task: Task, folder: Path, threads: int, lock: int, watcher: Watcher
) -> str | None:
    """Start a task's process and pass on what it says; return why it failed, if it did."""
    seed = [] if task.seed is None else [str(task.seed)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fullfed.compare.child", str(folder), task.label, *seed),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        pass_fds=[lock],
        start_new_session=True,  # a Ctrl-C is for us, who end it
    )
    failure = None
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            failure = _pass_on(json.loads(line), task, watcher) or failure
        code = await process.wait()
    finally:
        await _end(process)
    if code != 0:
        return f"the process ended with code {code}; what it wrote to standard error says why."
    return failure


def _pass_on(event: dict[str, Any], task: Task, watcher: Watcher) -> str | None:
    if "failed" in event:
        return str(event["failed"])
    if "line" in event:
        watcher.line(task, event["line"])
    else:
        watcher.progress(task, event["done"], event["total"], event["text"])
    return None


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
        await process.wait()
