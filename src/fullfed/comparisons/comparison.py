"""Runs a comparison, resuming where it stopped, and writes comparison.json."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from fullfed.comparisons.folder import ComparisonFolder
from fullfed.comparisons.plan import Contestant, Task, contestants
from fullfed.comparisons.processes import carry_out
from fullfed.comparisons.progress import ComparisonCallback
from fullfed.comparisons.search import hold_out
from fullfed.config import parse_recipe
from fullfed.errors import UserError
from fullfed.files import write_json
from fullfed.methods.catalogue import METHODS
from fullfed.recipe_file import RecipeSource, load_tables, source_of, title_of
from fullfed.runs.assembly import build_method, choose
from fullfed.runs.environment import environment
from fullfed.runs.history import PARTS, base_numbers, round_numbers
from fullfed.runs.loading import load_model, read_data, tokenize_data

TARGET_SHARE = 0.9  # of the way from the base model's loss to the best method's
_COLUMNS = (
    *("rounds_to_target", "up_bytes", "down_bytes"),
    *(f"{part}_seconds" for part in (*PARTS, "total")),
    "peak_memory_bytes",
)


class Comparison:
    """Every method of a recipe on the same clients, samples, rounds and evaluation.

    Args:
        recipe: its file or its tables, with those under ``compare``.
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
        recipe: RecipeSource,
        labels: Sequence[str],
        overrides: Sequence[str] = (),
        seeds: int = 1,
        trials: int = 5,
        trial_rounds: int | None = None,
        jobs: int = 1,
    ) -> None:
        tables, source = load_tables(recipe, overrides), source_of(recipe)
        self._title = title_of(recipe)
        self._contestants = contestants(tables, labels, source)
        # As written, with the names of environment variables: they hold on other machines too.
        common = {name: table for name, table in tables.items() if name != "compare"}
        self._recipe = parse_recipe(common, source)
        first_recipe = self._contestants[0].recipe
        if "loss" not in first_recipe.evaluation.metrics:
            raise UserError(
                f"{source}: evaluation.metrics lacks the loss, by which methods are compared; "
                "add it."
            )
        first = first_recipe.federation.seed
        self._seeds = range(first, first + seeds)
        self._trials = trials
        self._trial_rounds = trial_rounds or min(max(first_recipe.federation.rounds // 5, 2), 5)
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
        self, folder: ComparisonFolder, command: str, callback: ComparisonCallback | None = None
    ) -> dict[str, Any]:
        """Do what is missing in the folder; return what comparison.json then holds.

        Args:
            folder: new, or begun by the same recipe.
            command: what was typed, for the record.
            callback: is told how it is getting on.

        Raises:
            UserError: there is something else in the folder, or every run fails.
        """
        callback = callback or ComparisonCallback()
        with folder.held():
            folder.accept(self._contestants, self._trials, self._trial_rounds)
            found = self._search(folder, callback)
            runs = [Task(c.label, s) for s in self._seeds for c in self._contestants]
            failures = {task: found[task.label] for task in runs if task.label in found}
            due = [t for t in runs if t not in failures and not self._finished(folder, t)]
            callback.on_stage_begin("runs", len(due))
            failures |= carry_out(due, folder.path, self._jobs, self._threads, callback)
            failures |= {
                task: reason
                for task in runs
                if task not in failures and (reason := _without_loss(folder, task))
            }
            if len(failures) == len(runs):
                raise UserError(f"every run failed; {runs[0]}: {failures[runs[0]]}")
            data = {
                **self._describe(command),
                **collect(folder, self._contestants, self._seeds, failures),
                "search": self._search_record(folder),
            }
            write_json(folder.data_file, data)
        return data

    def _search(self, folder: ComparisonFolder, callback: ComparisonCallback) -> dict[str, str]:
        """Carry out what is missing of the searches; return why some could not be."""
        due = [
            Task(c.label) for c in self._contestants if len(folder.trials(c.label)) < self._trials
        ]
        callback.on_stage_begin("searches", len(due))
        failures = carry_out(due, folder.path, self._jobs, self._threads, callback)
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
            "environment": {**environment(), "jobs": self._jobs, "threads": self._threads},
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
    table, divided = recipe.model, read_data(recipe)
    model, tokenizer = load_model(table.path, table.dtype, table.device)
    data = tokenize_data(recipe, divided, model, tokenizer)
    for contestant in contestants:
        options = choose(contestant.recipe)
        model, _ = load_model(table.path, table.dtype, table.device)
        method = build_method(contestant.recipe, options, model, len(data.clients))
        method.plans(0, None)  # a schedule that does not fit shows at once
    _, validation = hold_out([c.examples for c in data.clients], recipe.federation.seed)
    return len(validation)


def _without_loss(folder: ComparisonFolder, task: Task) -> str:
    """Why a run that went to its end cannot be compared; empty if it can."""
    assert task.seed is not None  # it is a run
    run = folder.run(task.label, task.seed)
    if run.base()["loss"] is None:
        return "the base model's loss is not finite."
    return "" if run.metrics()[-1]["loss"] is not None else "its last loss is not finite."


def collect(
    folder: ComparisonFolder,
    contestants: Sequence[Contestant],
    seeds: Sequence[int],
    failures: Mapping[Task, str],
) -> dict[str, Any]:
    """Metrics, target and methods of comparison.json, from what the run folders hold."""
    metrics = list(contestants[0].recipe.evaluation.metrics)
    runs = {
        c.label: [
            _run(folder, c.label, seed, metrics, failures.get(Task(c.label, seed)))
            for seed in seeds
        ]
        for c in contestants
    }
    target = _target(runs, contestants[0].recipe.evaluation.every)
    return {
        "metrics": metrics,
        "target": target,
        "methods": [
            {
                "label": c.label,
                "method": c.recipe.method.name,
                "title": METHODS[c.recipe.method.name].title,
                "paper": METHODS[c.recipe.method.name].paper,
                "learning_rate": folder.learning_rate(c.label),
                "changes": dict(c.changes),
                "runs": runs[c.label],
                "columns": _columns(runs[c.label], metrics, target["value"]),
            }
            for c in contestants
        ],
    }


def _run(
    folder: ComparisonFolder, label: str, seed: int, metrics: Sequence[str], failed: str | None
) -> dict[str, Any]:
    run = folder.run(label, seed)
    base = run.base() if run.base_file.exists() else {}
    records = run.metrics()
    return {
        "seed": seed,
        "folder": str(run.path.relative_to(folder.path)),
        "failed": failed,
        "base": base_numbers(base, metrics),
        "rounds": [round_numbers(record, metrics) for record in records],
        "peak_memory_bytes": max((r["peak_memory_bytes"] for r in records), default=0),
    }


def _finished(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [run for run in runs if run["failed"] is None]


def _target(runs: Mapping[str, Sequence[Mapping[str, Any]]], every: int) -> dict[str, Any]:
    """The loss that counts as reached: most of the way to the best mean final loss."""
    done = {label: finished for label, own in runs.items() if (finished := _finished(own))}
    base = next(iter(done.values()))[0]["base"]["loss"]
    means = {
        label: statistics.fmean(run["rounds"][-1]["loss"] for run in finished)
        for label, finished in done.items()
    }
    leader = min(means, key=lambda label: means[label])
    return {
        "metric": "loss",
        "value": base - TARGET_SHARE * (base - means[leader]),
        "meaning": (
            f"{TARGET_SHARE:.0%} of the way from the base model's loss, {base:.4f}, to the lowest "
            f"mean final loss, {means[leader]:.4f} of {leader}; the loss is measured every "
            f"{f'{every} rounds' if every > 1 else 'round'}"
        ),
    }


def _columns(
    runs: Sequence[Mapping[str, Any]], metrics: Sequence[str], target: float
) -> dict[str, Any]:
    """Each column's value for every seed, and their mean and spread over the finished runs."""
    finished = {run["seed"]: _values(run, metrics, target) for run in _finished(runs)}
    columns = {}
    for name in (*metrics, *_COLUMNS):
        present = [values[name] for values in finished.values()]
        known = bool(present) and None not in present
        columns[name] = {
            "values": [finished[r["seed"]][name] if r["seed"] in finished else None for r in runs],
            "mean": statistics.fmean(present) if known else None,
            "spread": statistics.stdev(present) if known and len(present) > 1 else None,
        }
    return columns


def _values(run: Mapping[str, Any], metrics: Sequence[str], target: float) -> dict[str, Any]:
    rounds = run["rounds"]
    seconds = {part: sum(r["seconds"][part] for r in rounds) for part in PARTS}
    reached = (r["round"] for r in rounds if r["loss"] is not None and r["loss"] <= target)
    return {
        **{metric: rounds[-1][metric] for metric in metrics},
        "rounds_to_target": next(reached, None),
        "up_bytes": sum(r["up"] for r in rounds),
        "down_bytes": sum(r["down"] for r in rounds),
        **{f"{part}_seconds": value for part, value in seconds.items()},
        "total_seconds": sum(seconds.values()),
        "peak_memory_bytes": run["peak_memory_bytes"],
    }
