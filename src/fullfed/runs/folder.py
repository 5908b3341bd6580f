"""A run's folder: what is where, and how it stays whole through a crash.

recipe.toml     the resolved recipe; ``fullfed run`` takes it again
updates.log     the log: with the base model, the whole run
metrics.jsonl   one object a round, and one with round -1 for the base model
summary.json    first and last measurements, traffic, seconds; written when the run ends
snapshot.safetensors   a recent model, to shorten replay
account.json    the account of the round being committed
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
from fullfed.files import write_atomically, write_json


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
        if not self.base_file.is_file():
            raise UserError(f"{self.path}: the run has not begun; resume it first.")
        text = self.base_file.read_text(encoding="utf-8")
        return _parse(text, self.base_file, "model_hash", "data_hash")

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

    def write_account(self, account: dict[str, Any]) -> None:
        """Keep a round's account where a crash between log and metrics cannot lose it."""
        write_json(self.account_file, account)

    def account(self) -> dict[str, Any]:
        """The account of the last round that reached the log, or was about to.

        Raises:
            UserError: it is missing or was changed.
        """
        if not self.account_file.is_file():
            raise UserError(f"{self.account_file}: the file is missing; restore a copy of it.")
        return _parse(self.account_file.read_text(encoding="utf-8"), self.account_file, "round")

    def summary(self) -> dict[str, Any]:
        """What summary.json holds.

        Raises:
            UserError: the run has not ended, or the file was changed.
        """
        if not self.summary_file.is_file():
            raise UserError(f"{self.path}: the run has not ended; resume it first.")
        return _parse(
            self.summary_file.read_text(encoding="utf-8"), self.summary_file, "model_hash"
        )


def _parse(text: str, path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object in a file of the run, which holds at least the keys."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not value.keys() >= set(keys):
        raise UserError(f"{path}: this is not what the run wrote; restore a copy of it.")
    return value
