"""A comparison's tasks in this process, which spares a test the start of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fullfed.comparisons import processes
from fullfed.comparisons.folder import ComparisonFolder
from fullfed.comparisons.plan import Task
from fullfed.comparisons.progress import ComparisonCallback
from fullfed.errors import UserError


def carry_out(
    tasks: Sequence[Task], folder: Path, jobs: int, threads: int, callback: ComparisonCallback
) -> dict[Task, str]:
    """As fullfed.comparisons.processes.carry_out, one task after another."""
    here, failures = ComparisonFolder(folder), {}
    for task in tasks:

        def say(hook: str, *told: Any, task: Task = task) -> None:
            getattr(callback, hook)(task, *told)

        try:
            if task.seed is None:
                processes.carry_out_search(here, task.label, say)
            else:
                processes.carry_out_run(here, task.label, task.seed, say)
        except UserError as error:
            failures[task] = str(error)
    return failures
