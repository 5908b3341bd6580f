"""A run's folder: what is where, and how it stays whole through a crash.

recipe.toml     the resolved recipe; ``fullfed run`` takes it again
updates.log     the log: with the base model, the whole run
base.json       the base model's hash, the data's, and the measurements before round 0
metrics.jsonl   one object a round
summary.json    first and last measurements, traffic, seconds; written when the run ends
snapshot.safetensors   a recent model, to shorten replay
account.json    the newest round's line of metrics.jsonl but for what is measured on the model;
                written before the round enters the log, so that a crash cannot lose it
rollbacks.json  the versions that the run was taken back to, when, by whom and why; what was cut
                from the log each time is in rolled-back-N.log
states/         what simulated clients keep between visits, where a method has them keep something
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import tomli_w

from fullfed.config import Recipe, load_recipe
from fullfed.errors import UserError
from fullfed.files import write_atomically


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.toml"
        self.log_file = path / "updates.log"
        self.base_file = path / "base.json"
        self.metrics_file = path / "metrics.jsonl"
        self.summary_file = path / "summary.json"
        self.snapshot_file = path / "snapshot.safetensors"
        self.account_file = path / "account.json"
        self.states_folder = path / "states"
        self.rollbacks_file = path / "rollbacks.json"

    def create(self, recipe: Recipe) -> None:
        """Make the folder of a new run.

        Raises:
            UserError: a run or anything else is there already, or the folder cannot be made.
        """
        if self.recipe_file.exists():
            raise UserError(
                f"{self.path}: there is a run here already; resume it, or name another folder."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A recipe that a crash cut short is no run yet.
            others = [file for file in self.path.iterdir() if file.suffix != ".partial"]
        except OSError as error:
            raise UserError(
                f"{self.path}: the folder cannot be made ({error.strerror}); name another."
            ) from error
        if others:
            raise UserError(f"{self.path}: there is something here already; name a new folder.")
        self.write_recipe(recipe)

    def write_recipe(self, recipe: Recipe) -> None:
        """Have the run be of this recipe; it has not begun yet."""
        tables = recipe.model_dump(mode="json", exclude_none=True)
        write_atomically(self.recipe_file, tomli_w.dumps(tables).encode())

    def clear_partial(self) -> None:
        """Delete files that a crash left half-written; each has its old content beside it."""
        for leftover in self.path.rglob("*.partial"):
            leftover.unlink()

    def recipe(self) -> Recipe:
        """The recipe of the run that is here.

        Raises:
            UserError: there is no run here.
        """
        self._check_is_run()
        return load_recipe(self.recipe_file)

    def _check_is_run(self) -> None:
        if not self.recipe_file.is_file():
            raise UserError(f"{self.path}: there is no run here; name the folder of a run.")

    def base(self) -> dict[str, Any]:
        """What base.json holds.

        Raises:
            UserError: there is no run here, it was stopped before it began, or the file was
                changed.
        """
        self._check_is_run()
        absent = f"{self.path}: the run has not begun; resume it first."
        return _read(self.base_file, absent, "model_hash", "data_hash")

    def check_base_model(self, recipe: Recipe, model_hash: str) -> None:
        """Raise a UserError if a model with this hash is not the one that the run began with."""
        if self.base()["model_hash"] != model_hash:
            raise UserError(
                f"{recipe.model.path}: this is not the base model the run began with; "
                "put that one back."
            )

    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl; a line that a crash cut short is passed over.

        Raises:
            UserError: a line was changed to something that is not a round's record.
        """
        if not self.metrics_file.exists():
            return []
        text = self.metrics_file.read_text(encoding="utf-8")
        whole = [line for line in text.splitlines(keepends=True) if line[-1] == "\n"]
        return [_parse(line, self.metrics_file, "round", "model_hash") for line in whole]

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl, durably."""
        line = json.dumps(record, allow_nan=False) + "\n"
        try:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.metrics_file}: cannot be written ({error.strerror}); "
                "free some space and resume the run."
            ) from error

    def rewrite_metrics(self, records: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl, atomically."""
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_atomically(self.metrics_file, lines.encode())

    def account(self) -> dict[str, Any]:
        """The account of the last round that reached the log, or was about to.

        Raises:
            UserError: it is missing or was changed.
        """
        absent = f"{self.account_file}: the file is missing; restore a copy of it."
        return _read(self.account_file, absent, "round")

    def summary(self) -> dict[str, Any]:
        """What summary.json holds.

        Raises:
            UserError: the run has not ended, or the file was changed.
        """
        absent = f"{self.path}: the run has not ended; resume it first."
        return _read(self.summary_file, absent, "model_hash")


def _read(path: Path, absent: str, *keys: str) -> dict[str, Any]:
    """The JSON object in a file of the run; a UserError says ``absent`` where there is none."""
    if not path.is_file():
        raise UserError(absent)
    return _parse(path.read_bytes(), path, *keys)


def _parse(text: str | bytes, path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object in a file of the run, which holds at least the keys."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not value.keys() >= set(keys):
        raise UserError(f"{path}: this is not what the run wrote; restore a copy of it.")
    return value
