"""A comparison's tasks in this process, which spares a test the start of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fullfed.compare import child
from fullfed.compare.folder import ComparisonFolder
from fullfed.compare.processes import Task, Watcher
from fullfed.errors import UserError


def carry_out(
    tasks: Sequence[Task], folder: Path, jobs: int, threads: int, watcher: Watcher
) -> dict[Task, str]:
    """As fullfed.compare.processes.carry_out, one task after another."""
    here, failures = ComparisonFolder(folder), {}
    for task in tasks:

        def say(event: dict[str, Any], task: Task = task) -> None:
            if "line" in event:
                watcher.line(task, event["line"])

        try:
            if task.seed is None:
                child.search(here, task.label, say)
            else:
                child.carry_out(here, task.label, task.seed, say)
        except UserError as error:
            failures[task] = str(error)
    return failures
