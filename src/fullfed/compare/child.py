"""What one process of a comparison does: a method's search, or one run."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fullfed.compare.folder import ComparisonFolder
from fullfed.compare.search import Trial, next_rate
from fullfed.compare.trials import Trials
from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival
from fullfed.runs import run as runs
from fullfed.runs.assembly import Assembly

Say = Callable[[dict[str, Any]], None]


def search(folder: ComparisonFolder, label: str, say: Say) -> None:
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
        say({"done": visits, "total": budget * each, "text": text})

    tell()
    trials = Trials(recipe, rounds, tell)
    while len(found) < budget:
        trial = trials.run(next_rate(recipe.local.learning_rate, found))
        found.append(trial)
        folder.write_trials(label, found)
        tell()
        say({"line": f"trial {len(found)}/{budget}  {_describe(trial)}"})


def _describe(trial: Trial) -> str:
    result = trial.reason if trial.loss is None else f"validation loss {trial.loss:.4f}"
    return f"learning rate {trial.learning_rate:g}  {result}"


def carry_out(folder: ComparisonFolder, label: str, seed: int, say: Say) -> None:
    """Carry out one run, or the rest of it.

    Raises:
        UserError: the run cannot be carried to its end.
    """
    run = folder.run(label, seed)
    if run.recipe_file.exists():
        runs.resume(run.path, _Teller(say))
    else:
        runs.start(folder.run_recipe(label, seed), run.path, _Teller(say))


class _Teller:
    """A Watcher that says how a run gets on."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._rounds = self._cohort = self._version = self._visits = 0
        self._loss = ""

    def begin(self, assembly: Assembly, version: int) -> None:
        federation = assembly.recipe.federation
        self._rounds, self._cohort = federation.rounds, federation.clients_per_round
        self._version, self._visits = version, version * self._cohort
        self._tell()

    def visit(self, round: int, arrival: Arrival) -> None:
        self._visits += 1
        self._tell()

    def round(self, record: dict[str, Any]) -> None:
        self._version = record["round"] + 1
        if record["loss"] is not None:
            self._loss = f"  loss {record['loss']:.4f}"
        self._tell()

    def end(self, summary: dict[str, Any]) -> None:
        self._say({"line": f"{summary['rounds']} rounds{self._loss}"})

    def _tell(self) -> None:
        text = f"round {min(self._version + 1, self._rounds)}/{self._rounds}{self._loss}"
        self._say({"done": self._visits, "total": self._rounds * self._cohort, "text": text})


def work(folder: Path, label: str, seed: int | None, threads: int, words: Connection) -> None:
    """Carry out a method's run with a seed, or, without one, its search.

    What it says is {"done", "total", "text"} after each visit, {"line"} for what is worth
    keeping, and {"failed"} if a UserError ends it.

    Args:
        folder: the comparison's.
        threads: of torch.
        words: where it says how it gets on.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        if seed is None:
            search(ComparisonFolder(folder), label, words.send)
        else:
            carry_out(ComparisonFolder(folder), label, seed, words.send)
    except UserError as error:
        words.send({"failed": str(error)})


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
