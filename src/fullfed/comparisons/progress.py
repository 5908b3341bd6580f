"""Callbacks that show a comparison's progress on a console."""

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

from fullfed.comparisons.plan import Task


class ComparisonCallback:
    """Is called as a comparison goes on; a subclass overrides the hooks that it needs."""

    def on_stage_begin(self, name: str, tasks: int) -> None:
        """So many tasks of one kind come next."""

    def on_task_begin(self, task: Task) -> None:
        """A process starts."""

    def on_visit_end(self, task: Task, done: int, total: int, text: str) -> None:
        """A visit is over, ``done`` of ``total``; ``text`` says where the task is."""

    def on_message(self, task: Task, text: str) -> None:
        """Something is worth keeping."""

    def on_task_end(self, task: Task, failure: str | None) -> None:
        """A process has ended; ``failure`` says why it failed."""


@contextmanager
def comparison_progress(console: Console) -> Iterator[ComparisonCallback]:
    """What shows a comparison's progress on a console."""
    if not console.is_terminal:
        yield ComparisonLines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        yield ComparisonBars(console, bars)


class ComparisonLines(ComparisonCallback):
    """Prints a line for each trial and each run."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_stage_begin(self, name: str, tasks: int) -> None:
        if tasks:
            self._print(f"{name} to carry out: {tasks}")

    def on_message(self, task: Task, text: str) -> None:
        self._print(f"{task}: {text}")

    def on_task_end(self, task: Task, failure: str | None) -> None:
        if failure is not None:
            self._print(f"{task}: failed, {failure}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


class ComparisonBars(ComparisonLines):
    """Prints the same lines, and under them a bar for each process and one for all."""

    def __init__(self, console: Console, bars: Progress) -> None:
        super().__init__(console)
        self._bars = bars
        self._all = bars.add_task("", visible=False)
        self._running: dict[Task, TaskID] = {}

    def on_stage_begin(self, name: str, tasks: int) -> None:
        self._bars.reset(self._all, total=tasks, description=name, visible=tasks > 0)

    def on_task_begin(self, task: Task) -> None:
        self._running[task] = self._bars.add_task(f"{task}: loading", total=None)

    def on_visit_end(self, task: Task, done: int, total: int, text: str) -> None:
        self._bars.update(
            self._running[task], completed=done, total=total, description=f"{task}: {text}"
        )

    def on_task_end(self, task: Task, failure: str | None) -> None:
        super().on_task_end(task, failure)
        self._bars.remove_task(self._running.pop(task))
        self._bars.advance(self._all)
