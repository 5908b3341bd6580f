"""Telling a person how a comparison is getting on: live in a terminal, in plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from fullfed.compare.processes import Task, Watcher


class PlainComparison:
    """A Watcher that prints a line for each trial and each run."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def stage(self, name: str, tasks: int) -> None:
        if tasks:
            self._print(f"{name} to carry out: {tasks}")

    def begin(self, task: Task) -> None:
        pass

    def progress(self, task: Task, done: int, total: int, text: str) -> None:
        pass

    def line(self, task: Task, text: str) -> None:
        self._print(f"{task}: {text}")

    def end(self, task: Task, failure: str | None) -> None:
        if failure is not None:
            self._print(f"{task}: failed, {failure}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


class LiveComparison(PlainComparison):
    """The same lines, and under them a bar for each process and one for all."""

    def __init__(self, console: Console, bars: Progress) -> None:
        super().__init__(console)
        self._bars = bars
        self._all = bars.add_task("", visible=False)
        self._running: dict[Task, TaskID] = {}

    def stage(self, name: str, tasks: int) -> None:
        self._bars.reset(self._all, total=tasks, description=name, visible=tasks > 0)

    def begin(self, task: Task) -> None:
        self._running[task] = self._bars.add_task(f"{task}: loading", total=None)

    def progress(self, task: Task, done: int, total: int, text: str) -> None:
        self._bars.update(
            self._running[task], completed=done, total=total, description=f"{task}: {text}"
        )

    def end(self, task: Task, failure: str | None) -> None:
        super().end(task, failure)
        self._bars.remove_task(self._running.pop(task))
        self._bars.advance(self._all)


@contextmanager
def watching_comparison(console: Console) -> Iterator[Watcher]:
    """What shows a comparison's progress here."""
    if not console.is_terminal:
        yield PlainComparison(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        yield LiveComparison(console, bars)
