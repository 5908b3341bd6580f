"""The files in a comparison's folder, and which recipe they belong to.

plan.json           what is to be carried out
search/LABEL.json   the trials of a method's search for a learning rate
runs/LABEL/seed-S   an ordinary run's folder
comparison.json     what came of it; comparison.md and comparison.html show it
comparison.lock     held while a comparison is at work here
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fullfed.comparisons.plan import OWN, Contestant, changed
from fullfed.comparisons.search import Trial, best
from fullfed.config import Recipe, parse_recipe
from fullfed.errors import UserError
from fullfed.files import locked, write_json
from fullfed.runs.assembly import settled
from fullfed.runs.binding import flat
from fullfed.runs.folder import RunFolder


class ComparisonFolder:
    """The files of one comparison.

    Args:
        path: the folder; need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan_file = path / "plan.json"
        self.data_file = path / "comparison.json"
        self.markdown_file = path / "comparison.md"
        self.page_file = path / "comparison.html"
        self._lock_file = path / "comparison.lock"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other comparisons out of it.

        Raises:
            UserError: it cannot be made, holds anything else, or is in use.
        """
        busy = f"{self.path}: another comparison is at work here; wait for its end."
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._check_is_ours()
                stack.enter_context(locked(self._lock_file, busy))
            except OSError as error:
                raise UserError(
                    f"{self.path}: the folder cannot be made ({error.strerror}); name another."
                ) from error
            yield

    def _check_is_ours(self) -> None:
        ours = self.plan_file.exists() or all(
            file == self._lock_file or file.suffix == ".partial" for file in self.path.iterdir()
        )
        if not ours:
            raise UserError(f"{self.path}: there is something here already; name a new folder.")

    def accept(self, contestants: Sequence[Contestant], trials: int, rounds: int) -> None:
        """Write the plan down, or see that it is that of the comparison which is here.

        Methods and seeds may be added to a comparison.

        Raises:
            UserError: there is another comparison here.
        """
        there_already = self.plan_file.exists()  # with the day on which it began
        chosen = {c.label: c.recipe if there_already else settled(c.recipe) for c in contestants}
        recipes = {
            label: recipe.model_dump(mode="json", exclude_none=True)
            for label, recipe in chosen.items()
        }
        common = {name: t for name, t in next(iter(recipes.values())).items() if name not in OWN}
        methods = {label: {n: t[n] for n in OWN if n in t} for label, t in recipes.items()}
        plan = {
            "common": common,
            "search": {"trials": trials, "rounds": rounds},
            "methods": methods,
        }
        if there_already:
            there = self._plan()
            common["data"].setdefault("date", there["common"]["data"].get("date"))
            shared = {label: m for label, m in there["methods"].items() if label in methods}
            now = {**plan, "methods": {label: methods[label] for label in shared}}
            self._refuse_change(flat({**there, "methods": shared}), flat(now))
            plan["methods"] = {**there["methods"], **methods}
        write_json(self.plan_file, plan)

    def _refuse_change(self, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for key in sorted(there.keys() | now.keys()):
            if there.get(key) != now.get(key):
                raise UserError(
                    f"{self.path}: there is another comparison here "
                    f"({key.removeprefix('common.')} is {there.get(key)!r} in it and "
                    f"{now.get(key)!r} now); name another folder."
                )

    def recipe(self, label: str) -> Recipe:
        """A method's recipe, at the learning rate its search begins with."""
        plan = self._plan()
        return parse_recipe({**plan["common"], **plan["methods"][label]}, str(self.plan_file))

    def run_recipe(self, label: str, seed: int) -> Recipe:
        """A method's recipe with one of the seeds, at the best learning rate of its search."""
        recipe = changed(self.recipe(label), "local", learning_rate=self.learning_rate(label))
        return changed(recipe, "federation", seed=seed)

    def learning_rate(self, label: str) -> float:
        """The best of a method's search, or where it starts if there is no trial yet."""
        trials = self.trials(label)
        return best(trials).learning_rate if trials else self.recipe(label).local.learning_rate

    def budget(self) -> tuple[int, int]:
        """(trials of a search, rounds of a trial)."""
        search = self._plan()["search"]
        return search["trials"], search["rounds"]

    def _plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = _read(self.plan_file)
        return plan

    def run(self, label: str, seed: int) -> RunFolder:
        """The folder of one run."""
        return RunFolder(self.path / "runs" / label / f"seed-{seed}")

    def trials(self, label: str) -> list[Trial]:
        """A method's trials so far."""
        file = self._search_file(label)
        if not file.exists():
            return []
        return [Trial(**trial) for trial in _read(file)]

    def write_trials(self, label: str, trials: Sequence[Trial]) -> None:
        """Replace the record of a method's search."""
        file = self._search_file(label)
        file.parent.mkdir(exist_ok=True)
        write_json(file, [asdict(trial) for trial in trials])

    def _search_file(self, label: str) -> Path:
        return self.path / "search" / f"{label}.json"


def _read(path: Path) -> Any:
    """What a JSON file of the comparison holds."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path}: this is not what the comparison wrote; restore a copy of it."
        ) from error
