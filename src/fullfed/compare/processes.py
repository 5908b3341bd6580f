"""The processes of a comparison: so many at once, each with its share of the threads."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from fullfed.compare import child


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
    tasks: Sequence[Task], folder: Path, jobs: int, threads: int, watcher: Watcher
) -> dict[Task, str]:
    """Carry out every task in a process of its own; return why some of them failed.

    An interruption ends the processes before it is passed on; what they have done is kept.

    Args:
        folder: the comparison's.
        jobs: processes at once.
        threads: of torch in each.
    """
    due, failures = deque(tasks), dict[Task, str]()
    running: dict[Connection, tuple[Task, BaseProcess]] = {}
    try:
        while due or running:
            while due and len(running) < jobs:
                task = due.popleft()
                watcher.begin(task)
                words, process = _start(task, folder, threads)
                running[words] = task, process
            for ready in wait(list(running)):
                words = cast(Connection, ready)
                task, process = running[words]
                try:
                    _pass_on(words.recv(), task, watcher, failures)
                except EOFError:
                    del running[words]
                    process.join()
                    if process.exitcode != 0:
                        failures[task] = (
                            f"its process ended with code {process.exitcode}; what it wrote to "
                            "standard error, if anything, says why."
                        )
                    watcher.end(task, failures.get(task))
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    return failures


def _start(task: Task, folder: Path, threads: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # its memory is what it needs itself
    ours, theirs = context.Pipe(duplex=False)
    arguments = (folder, task.label, task.seed, threads, theirs)
    process = context.Process(target=child.work, args=arguments, name=str(task))
    # A Ctrl-C is for us, who end the processes: they start with it ignored.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    theirs.close()
    return ours, process


def _pass_on(
    event: dict[str, Any], task: Task, watcher: Watcher, failures: dict[Task, str]
) -> None:
    if "failed" in event:
        failures[task] = event["failed"]
    elif "line" in event:
        watcher.line(task, event["line"])
    else:
        watcher.progress(task, event["done"], event["total"], event["text"])
