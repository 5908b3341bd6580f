"""One process of a comparison: a method's search, or one run.

    python -m fullfed.compare.child DIR LABEL [SEED]

A process of its own shows the peak memory that it needs itself. It says how it gets on in JSON,
an object a line, on its standard output: {"done", "total", "text"} after each visit, {"line"} for
what is worth keeping, {"failed"} if a UserError ends it.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def main() -> None:
    # A process nobody listens to any more ends quietly at its next word.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    words, sys.stdout = sys.stdout, sys.stderr

    def say(event: dict[str, Any]) -> None:
        words.write(json.dumps(event) + "\n")
        words.flush()

    path, label, *seed = sys.argv[1:]
    folder = ComparisonFolder(Path(path))
    try:
        if seed:
            carry_out(folder, label, int(seed[0]), say)
        else:
            search(folder, label, say)
    except UserError as error:
        say({"failed": str(error)})


if __name__ == "__main__":
    main()
