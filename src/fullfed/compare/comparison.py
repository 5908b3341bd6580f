"""Carrying out a comparison, from the first search or from wherever it was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fullfed.compare.environment import environment
from fullfed.compare.folder import ComparisonFolder
from fullfed.compare.plan import Contestant, contestants
from fullfed.compare.processes import Silence, Task, Watcher, carry_out
from fullfed.compare.result import collect
from fullfed.compare.validation import hold_out
from fullfed.config import load_tables, parse_recipe
from fullfed.errors import UserError
from fullfed.files import write_json
from fullfed.runs.assembly import build_method, method_options
from fullfed.runs.loading import load_data, load_model


class Comparison:
    """Every method of a recipe on the same clients, samples, rounds and evaluation.

    Args:
        source: the recipe's file.
        labels: the methods; see ``contestants``.
        overrides: ``key=value`` changes of the recipe.
        seeds: runs of each method, with the recipe's seed and the next ones.
        trials: short runs in each method's search for a learning rate.
        trial_rounds: rounds of each; None for a fifth of the recipe's, but 2 to 5.
        jobs: processes at once.

    Raises:
        UserError: bad input.
    """

    def __init__(
        self,
        source: Path,
        labels: Sequence[str],
        overrides: list[str] | None = None,
        seeds: int = 1,
        trials: int = 5,
        trial_rounds: int | None = None,
        jobs: int = 1,
    ) -> None:
        tables = load_tables(source, overrides)
        self._title = source.stem
        self._contestants = contestants(tables, labels, str(source))
        # As written, with the names of environment variables: they hold on other machines too.
        common = {name: table for name, table in tables.items() if name != "compare"}
        self._recipe = parse_recipe(common, str(source))
        recipe = self._contestants[0].recipe
        if "loss" not in recipe.evaluation.metrics:
            raise UserError(
                f"{source}: evaluation.metrics lacks the loss, by which methods are compared; "
                "add it."
            )
        first = recipe.federation.seed
        self._seeds = range(first, first + seeds)
        self._trials = trials
        self._trial_rounds = trial_rounds or min(max(recipe.federation.rounds // 5, 2), 5)
        self._jobs = jobs
        self._threads = max(torch.get_num_threads() // jobs, 1)
        self._validation_samples = _check(self._contestants)

    @property
    def budget(self) -> str:
        """The search's budget, for people."""
        cohort = self._contestants[0].recipe.federation.clients_per_round
        visits = self._trials * self._trial_rounds * cohort
        return (
            f"each method's learning rate: the best of {self._trials} trials of "
            f"{self._trial_rounds} rounds ({visits} visits) on {self._validation_samples} "
            "validation samples of the clients"
        )

    def carry_out(
        self, folder: ComparisonFolder, command: str, watcher: Watcher | None = None
    ) -> dict[str, Any]:
        """Do what is missing in the folder; return what comparison.json then holds.

        Args:
            folder: new, or begun by the same recipe.
            command: what was typed, for the record.
            watcher: is told how it is getting on.

        Raises:
            UserError: there is something else in the folder, or every run fails.
        """
        watcher = watcher or Silence()
        with folder.held():
            folder.accept(self._contestants, self._trials, self._trial_rounds)
            found = self._search(folder, watcher)
            runs = [Task(c.label, s) for s in self._seeds for c in self._contestants]
            failures = {task: found[task.label] for task in runs if task.label in found}
            due = [t for t in runs if t not in failures and not self._finished(folder, t)]
            watcher.stage("runs", len(due))
            failures |= carry_out(due, folder.path, self._jobs, self._threads, watcher)
            if len(failures) == len(runs):
                raise UserError(f"every run failed; {runs[0]}: {failures[runs[0]]}")
            data = self._describe(command) | collect(
                folder, self._contestants, self._seeds, failures
            )
            data["search"] = self._search_record(folder)
            write_json(folder.data_file, data)
        return data

    def _search(self, folder: ComparisonFolder, watcher: Watcher) -> dict[str, str]:
        """Carry out what is missing of the searches; return why some could not be."""
        due = [
            Task(c.label) for c in self._contestants if len(folder.trials(c.label)) < self._trials
        ]
        watcher.stage("searches", len(due))
        failures = carry_out(due, folder.path, self._jobs, self._threads, watcher)
        return {task.label: f"in its search: {reason}" for task, reason in failures.items()}

    def _finished(self, folder: ComparisonFolder, task: Task) -> bool:
        assert task.seed is not None  # it is a run
        run = folder.run(task.label, task.seed)
        if not run.recipe_file.exists():
            return False
        if run.recipe() != folder.run_recipe(task.label, task.seed):
            raise UserError(f"{run.path}: this is not the run that belongs here; remove it.")
        return run.summary_file.exists()

    def _describe(self, command: str) -> dict[str, Any]:
        return {
            "title": self._title,
            "command": command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "recipe": self._recipe.model_dump(mode="json", exclude_none=True),
            "environment": environment(self._jobs, self._threads),
        }

    def _search_record(self, folder: ComparisonFolder) -> dict[str, Any]:
        return {
            "trials": self._trials,
            "rounds": self._trial_rounds,
            "validation_samples": self._validation_samples,
            "methods": {
                c.label: [asdict(trial) for trial in folder.trials(c.label)]
                for c in self._contestants
            },
        }


def _check(contestants: Sequence[Contestant]) -> int:
    """See that every method fits model and data; return the size of the validation part.

    Raises:
        UserError: one does not.
    """
    recipe = contestants[0].recipe
    table = recipe.model
    model, tokenizer = load_model(table.path, table.dtype, table.device)
    data = load_data(recipe, model, tokenizer)
    for contestant in contestants:
        options = method_options(contestant.recipe.method)
        model, _ = load_model(table.path, table.dtype, table.device)
        method = build_method(contestant.recipe, options, model, len(data.clients))
        method.plans(0, None)  # a schedule that does not fit shows at once
    _, validation = hold_out([c.examples for c in data.clients], recipe.federation.seed)
    return len(validation)
