"""A run's folder: what is where, and how it stays whole through a crash.

recipe.toml     the resolved recipe; ``fullfed run`` takes it again
updates.log     the log: with the base model and scales.bin, the whole run
base.json       the base model's hash, the data's, and the measurements before round 0
metrics.jsonl   one object a round
predictions.jsonl   where metrics are of answers: the answers (``runs.predictions``)
scales.bin      of a method whose codec has scales: theirs, a number for each row and each column of
                the model; measured on the base model before round 0 (``runs.curvature``)
summary.json    first and last measurements, traffic, seconds; written when the run ends
snapshot.safetensors   a recent model, to shorten replay; best.safetensors where the log keeps no
                older updates (``runs.snapshots``)
account.json    the newest round's line of metrics.jsonl but for what is measured on the model;
                written before the round enters the log, so that a crash cannot lose it
rollbacks.json  the versions that the run was taken back to, when, by whom and why; what was cut
                from the log each time is in rolled-back-N.log; rollback.json is there until one
                is finished
states/         what simulated clients keep between visits, where a method has them keep something
base/, data/    the base model with its tokenizer, and the samples, where a program gave them as
                objects (``runs.given``)
members.json    of a real federation: the run's name and its clients (``deployment.folders``)

Each file is bound to the others, so that none can be damaged, or be another run's, unnoticed.
base.json has the recipe and the hashes of members.json and scales.bin. The JSON objects are sealed
(``fullfed.files``): the first line of metrics.jsonl follows base.json, each other line the one
before, account.json and summary.json the last. Each line has its log record's digest, and like
base.json the hash of its version's answers. The snapshot and the states are of the run that
base.json's checksum names, and the snapshot has the hash that its round's line has.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fullfed.config import Recipe
from fullfed.errors import UserError
from fullfed.federation.log import MAGIC, count_records
from fullfed.federation.states import StatesOfVisits, StatesOnDisk
from fullfed.files import read_sealed, seal, unseal, write_atomically, write_sealed
from fullfed.recipe_file import load_recipe
from fullfed.runs.binding import check_bound, tables_of

_SECRET_BYTES = 32


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
        self.best_file = path / "best.safetensors"
        self.secret_file = path / "secret.key"
        self.account_file = path / "account.json"
        self.rollbacks_file = path / "rollbacks.json"
        self.rollback_file = path / "rollback.json"
        self.scales_file = path / "scales.bin"
        self._members_file = path / "members.json"
        self._states_folder = path / "states"
        self._newest: str | None = None  # the checksum that the next line will follow

    def secret(self) -> bytes:
        """32 bytes of the system's randomness that are the run's own, made at its beginning.

        Raises:
            UserError: the file is missing, or no secret.
        """
        if not self.secret_file.exists() and not self.begun:
            write_atomically(self.secret_file, secrets.token_bytes(_SECRET_BYTES), mode=0o600)
        secret = self.secret_file.read_bytes() if self.secret_file.exists() else b""
        if len(secret) != _SECRET_BYTES:
            raise UserError(
                f"{self.secret_file}: this is not the secret of which the run's noise follows; "
                "restore a copy of it."
            )
        return secret

    def create(self, recipe: Recipe) -> None:
        """Make the folder of a new run.

        Raises:
            UserError: a run or anything else is there already, or the folder cannot be made.
        """
        self.check_unused()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path}: the folder cannot be made ({error.strerror}); name another."
            ) from error
        self.write_recipe(recipe)

    def check_unused(self) -> None:
        """
        Raises:
            UserError: a run or anything else is there already.
        """
        if self.recipe_file.exists():
            raise UserError(
                f"{self.path}: there is a run here already; resume it, or name another folder."
            )
        if not self.path.exists():
            return
        # A recipe that a crash cut short is no run yet.
        if not self.path.is_dir() or any(f.suffix != ".partial" for f in self.path.iterdir()):
            raise UserError(f"{self.path}: there is something here already; name a new folder.")

    def write_recipe(self, recipe: Recipe) -> None:
        """Have the run be of this recipe; what it is bound to is as before."""
        write_atomically(self.recipe_file, tomli_w.dumps(tables_of(recipe)).encode())

    def clear_partial(self) -> None:
        """Delete files that a crash left half-written; each has its old content beside it."""
        for leftover in self.path.rglob("*.partial"):
            leftover.unlink()

    def recipe(self) -> Recipe:
        """The recipe of the run that is here.

        Raises:
            UserError: there is no run here, or its recipe is not the one that it began with.
        """
        if not self.recipe_file.is_file():
            raise UserError(f"{self.path}: there is no run here; name the folder of a run.")
        recipe = load_recipe(self.recipe_file)
        if self.begun:
            base = self._base()
            check_bound(recipe, base["recipe"], self.recipe_file)
            if base["members"] != _sha256(self._members_file):
                raise UserError(
                    f"{self._members_file}: the file was changed; restore a copy of it."
                )
        return recipe

    @property
    def begun(self) -> bool:
        """Whether the run has measured its base model, and is bound to its recipe."""
        later = (self.base_file, self.account_file, self.metrics_file, self.snapshot_file)
        logged = self.log_file.exists() and self.log_file.stat().st_size > len(MAGIC)
        return logged or any(file.exists() for file in later)

    def base(self) -> dict[str, Any]:
        """What base.json holds.

        Raises:
            UserError: there is no run here, it was stopped before it began, or the file or the
                recipe was changed.
        """
        self.recipe()
        if not self.begun:
            raise UserError(f"{self.path}: the run has not begun; resume it first.")
        return self._base()

    def _base(self) -> dict[str, Any]:
        absent = f"{self.base_file}: the file is missing; restore a copy of it."
        try:
            return read_sealed(self.base_file, absent)
        except UserError as error:
            data = self.base_file.read_bytes() if self.base_file.exists() else b""
            if b'"data_hash"' in data and b'"checksum"' not in data:
                raise UserError(
                    f"{self.path}: the run is of an earlier version of fullfed, which seals no "
                    "files; carry it on with that version."
                ) from error
            raise

    def write_base(self, base: Mapping[str, Any]) -> None:
        """Write base.json, which binds the run to the recipe that is here."""
        hashes = {"members": _sha256(self._members_file), "scales": _sha256(self.scales_file)}
        bound = {"recipe": tables_of(self.recipe()), **hashes}
        write_sealed(self.base_file, {**bound, **base})

    def scales(self) -> bytes:
        """What scales.bin holds; empty where the run's codec has no scales.

        Raises:
            UserError: the file is missing or was changed; or see ``base``.
        """
        if self.scales_hash is None:
            return b""
        data = self.scales_file.read_bytes() if self.scales_file.exists() else b""
        if hashlib.sha256(data).hexdigest() != self.scales_hash:
            raise UserError(
                f"{self.scales_file}: the file is missing or was changed; restore a copy of it."
            )
        return data

    @property
    def scales_hash(self) -> str | None:
        """The SHA-256, in hexadecimal, of the scales; None where the codec has none."""
        found = self.base().get("scales")  # runs of an earlier version wrote nothing of any
        return None if found is None else str(found)

    def write_scales(self, scales: bytes) -> None:
        """Write scales.bin, before the run begins; there is no such file for no bytes."""
        self.scales_file.unlink(missing_ok=True)
        if scales:
            write_atomically(self.scales_file, scales)

    def check_base_model(self, recipe: Recipe, model_hash: str) -> None:
        """Raise a UserError if a model with this hash is not the one that the run began with."""
        if self.base()["model_hash"] != model_hash:
            raise UserError(
                f"{recipe.model.path}: this is not the base model the run began with; "
                "put that one back."
            )

    def check_data(self, recipe: Recipe, data_hash: str) -> None:
        """Raise a UserError if data with this hash are not those that the run began with."""
        if self.base()["data_hash"] != data_hash:
            sources = ", ".join(source.path for source in recipe.data.training_sources())
            raise UserError(
                f"{sources}: training or test data are not those the run began with; put those "
                "back."
            )

    def run(self) -> str:
        """Names the run: its own alone, whatever its recipe."""
        return str(self.base()["checksum"])

    def clients(self) -> list[dict[str, Any]]:
        """The run's clients by their numbers: "name", and "samples" where that is known; empty for
        a run of an earlier version, which wrote none down."""
        base, members = self.base(), self._members_file
        listed = json.loads(members.read_bytes()) if members.exists() else base
        return list(listed.get("clients", ()))

    def states(self) -> StatesOnDisk:
        """What the run's simulated clients keep."""
        return StatesOnDisk(self._states_folder, self.run())

    def states_of_visits(self) -> StatesOfVisits:
        """The same for a process that visits and is not the run's own."""
        return StatesOfVisits(self._states_folder, self.run())

    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl; a line that a crash cut short is passed over.

        Raises:
            UserError: a line was changed, is missing, or is not where the run wrote it; or see
                ``base``.
        """
        logged = count_records(self.log_file)  # before looking, as a run may be at work here
        records = self.lines()
        if self.rollback_file.exists():
            raise UserError(
                f"{self.path}: a rollback was interrupted here; resume the run, which finishes it."
            )
        if logged > len(records) + 1:  # the last one is made up for; see account.json
            raise UserError(
                f"{self.metrics_file}: rounds of the log are missing here; restore a copy of it."
            )
        return records

    def lines(self) -> list[dict[str, Any]]:
        """The same, whatever the log has: in the middle of a rollback."""
        data = self.metrics_file.read_bytes() if self.metrics_file.exists() else b""
        lines, records = data.split(b"\n")[:-1], []
        follows = str(self.base()["checksum"]) if lines else ""
        for line in lines:
            record = unseal(line, self.metrics_file, follows)
            follows = record["checksum"]
            records.append(record)
        return records

    def digests(self) -> list[str]:
        """Of the log's records that metrics.jsonl knows, in hexadecimal; see ``metrics``."""
        return [str(record["log"]) for record in self.metrics()]

    def append_metrics(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Add one line to metrics.jsonl, durably; return it as it is there."""
        sealed = seal(record, self._follows())
        line = json.dumps(sealed, allow_nan=False) + "\n"
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
        self._newest = sealed["checksum"]
        return sealed

    def rewrite_metrics(self, records: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl, atomically, by the first of its lines."""
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_atomically(self.metrics_file, lines.encode())
        self._newest = None

    def _follows(self) -> str:
        """The checksum of the newest line, or of base.json before the first."""
        if self._newest is None:
            self._newest = str((self.metrics() or [self.base()])[-1]["checksum"])
        return self._newest

    def account(self) -> dict[str, Any]:
        """The account of the round after the newest line: it reached the log, or was about to.

        Raises:
            UserError: it is missing, was changed, or is another round's.
        """
        absent = f"{self.account_file}: the file is missing; restore a copy of it."
        return read_sealed(self.account_file, absent, self._follows())

    def write_account(self, account: Mapping[str, Any]) -> None:
        """Write the account of the round after the newest line."""
        write_sealed(self.account_file, account, self._follows())

    def summary(self) -> dict[str, Any]:
        """What summary.json holds.

        Raises:
            UserError: the run has not ended, or the file was changed; or see ``metrics``.
        """
        absent = f"{self.path}: the run has not ended; resume it first."
        self._newest = None  # this object may have been there before the last lines were
        follows = self._follows()
        try:
            return read_sealed(self.summary_file, absent, follows)
        except UserError as error:
            if not self.summary_file.exists():
                raise
            raise UserError(
                f"{self.summary_file}: this is not what the run wrote after its last round; resume "
                "the run to have it written anew, or restore copies of it and of metrics.jsonl."
            ) from error

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_sealed(self.summary_file, summary, self._follows())


def _sha256(file: Path) -> str | None:
    """Of the file, in hexadecimal; None where there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def unused(path: Path, used: Callable[[Path], bool] = Path.exists) -> Path:
    """The path, or the path with the first free number after it."""
    number, candidate = 1, path
    while used(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
