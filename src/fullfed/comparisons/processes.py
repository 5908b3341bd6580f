"""The processes of a comparison: so many at once, and what each of them does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import torch

from fullfed.child_processes import end_with_parent, start
from fullfed.comparisons.folder import ComparisonFolder
from fullfed.comparisons.plan import Task
from fullfed.comparisons.progress import ComparisonCallback
from fullfed.comparisons.search import Trials, next_rate
from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival
from fullfed.runs import run as runs
from fullfed.runs.assembly import Assembly
from fullfed.runs.callback import Callback

Say = Callable[..., None]  # the name of a hook of ComparisonCallback, and what it is told


def carry_out(
    tasks: Sequence[Task], folder: Path, jobs: int, threads: int, callback: ComparisonCallback
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
                callback.on_task_begin(task)
                about = (folder, task.label, task.seed, threads)
                events, process = start(work, about, str(task))
                running[events] = task, process
            for ready in wait(list(running)):
                events = cast(Connection, ready)
                task, process = running[events]
                try:
                    hook, *told = events.recv()
                    if hook == "failed":
                        (failures[task],) = told
                    else:
                        getattr(callback, hook)(task, *told)
                except EOFError:
                    del running[events]
                    process.join()
                    if process.exitcode != 0:
                        failures[task] = (
                            f"its process ended with code {process.exitcode}; what it wrote to "
                            "standard error, if anything, says why."
                        )
                    callback.on_task_end(task, failures.get(task))
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    return failures


def work(folder: Path, label: str, seed: int | None, threads: int, events: Connection) -> None:
    """Carry out a method's run with a seed, or, without one, its search.

    What it sends is tuples: the name of a hook of ComparisonCallback and what that is told of the
    task, or "failed" and the sentence of the UserError that ended it.

    Args:
        folder: the comparison's.
        threads: of torch.
        events: where it says how it gets on.
    """

    def say(*event: Any) -> None:
        events.send(event)

    end_with_parent()
    torch.set_num_threads(threads)
    try:
        if seed is None:
            carry_out_search(ComparisonFolder(folder), label, say)
        else:
            carry_out_run(ComparisonFolder(folder), label, seed, say)
    except UserError as error:
        say("failed", str(error))


def carry_out_search(folder: ComparisonFolder, label: str, say: Say) -> None:
    """Carry out the trials of a method's search that are missing.

    Raises:
        UserError: the recipe does not fit its data or its model.
    """
    recipe, (budget, rounds) = folder.recipe(label), folder.budget()
    found = folder.trials(label)
    visits = 0

    def tell(arrival: Arrival | None = None) -> None:
        nonlocal visits
        each = rounds * recipe.federation.clients_per_round
        visits = len(found) * each if arrival is None else visits + 1
        text = f"trial {min(len(found) + 1, budget)}/{budget}"
        say("on_visit_end", visits, budget * each, text)

    tell()
    trials = Trials(recipe, rounds, tell)
    while len(found) < budget:
        trial = trials.run(next_rate(recipe.local.learning_rate, found))
        found.append(trial)
        folder.write_trials(label, found)
        tell()
        result = trial.reason if trial.loss is None else f"validation loss {trial.loss:.4f}"
        rate = f"learning rate {trial.learning_rate:g}"
        say("on_message", f"trial {len(found)}/{budget}  {rate}  {result}")


def carry_out_run(folder: ComparisonFolder, label: str, seed: int, say: Say) -> None:
    """Carry out one run, or the rest of it.

    Raises:
        UserError: the run cannot be carried to its end.
    """
    run = folder.run(label, seed)
    if run.recipe_file.exists():
        runs.resume(run.path, [_RunMessages(say)])
    else:
        runs.start(folder.run_recipe(label, seed), run.path, [_RunMessages(say)])


class _RunMessages(Callback):
    """Says how a run gets on."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._rounds = self._cohort = self._version = self._visits = 0
        self._loss = ""

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        federation = assembly.recipe.federation
        self._rounds, self._cohort = federation.rounds, federation.clients_per_round
        self._version, self._visits = version, version * self._cohort
        self._tell()

    def on_visit_end(self, round: int, arrival: Arrival) -> None:
        self._visits += 1
        self._tell()

    def on_round_end(self, record: dict[str, Any]) -> None:
        self._version = record["round"] + 1
        if record["loss"] is not None:
            self._loss = f"  loss {record['loss']:.4f}"
        self._tell()

    def on_run_end(self, summary: dict[str, Any]) -> None:
        self._say("on_message", f"{summary['rounds']} rounds{self._loss}")

    def _tell(self) -> None:
        text = f"round {min(self._version + 1, self._rounds)}/{self._rounds}{self._loss}"
        self._say("on_visit_end", self._visits, self._rounds * self._cohort, text)
