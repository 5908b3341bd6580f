"""What a program gives a run as objects: a model with its tokenizer, and everybody's records.

A run's folder is all that resuming, verifying and exporting need, in another process too. So the
objects are written there first, and the run reads them back as it reads any model and any data:

base/           the model and its tokenizer, as ``save_pretrained`` writes them
data/clients/   a file for each client, named by the client
data/test.jsonl the test set
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from fullfed.config import Recipe, parse_recipe
from fullfed.data.record_files import stem_of
from fullfed.errors import UserError
from fullfed.recipe_file import RecipeSource, expand_variables, load_tables, source_of
from fullfed.runs.assembly import (
    assemble,
    choose,
    resolved,
    settled,
)
from fullfed.runs.brought import with_trainer
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.run import carry_out
from fullfed.training.trainer import Trainer

# Somebody's records: dicts, or what gives dicts when it is gone through, as a datasets.Dataset
# does; or the path of a file that data.train could name.
Records = Iterable[Mapping[str, Any]] | str | Path

_NAME = re.compile(r"\w[\w -]{0,99}")  # of a client, which is to be a file's


@dataclass(frozen=True)
class Given:
    """What a recipe need not name, because it is here.

    Attributes:
        model, tokenizer: the base model; neither is changed.
        clients: each client's records, by the client's name.
        test: the records of the test set.
    """

    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    clients: Mapping[str, Records] | None = None
    test: Records | None = None

    @property
    def nothing(self) -> bool:
        return all(part is None for part in vars(self).values())

    def completed(self, tables: dict[str, Any], folder: Path) -> dict[str, Any]:
        """A recipe's tables that name what ``write`` writes into the folder.

        Raises:
            UserError: the recipe names something else for what is given, or a part is missing.
        """
        tables = copy.deepcopy(tables)
        if isinstance(self.model, str | Path):
            raise UserError(
                f"model: {self.model} is a path; name it in the recipe, as model.path, or give the "
                "loaded model."
            )
        if (self.model is None) is not (self.tokenizer is None):
            raise UserError("model: a model goes with its tokenizer; give model= and tokenizer=.")
        if self.model is not None:
            if not isinstance(self.model, PreTrainedModel):
                raise UserError(
                    f"model: this is {type(self.model).__name__}, not a transformers model; give "
                    "one, or name a folder or a hub name in the recipe (model.path)."
                )
            _name(tables, "model", "path", str(folder / "base"), "model=")
        if self.clients is not None:
            _check_names(self.clients)
            _name(tables, "data", "train", str(folder / "data" / "clients"), "clients=")
            _name(tables, "data", "partition", "file", "clients=")
            _name(tables, "data", "clients", len(self.clients), "clients=")
            del tables["data"]["clients"]  # the files say it
        if self.test is not None:
            _name(tables, "data", "test", str(folder / "data" / _test_file(self.test)), "test=")
        return tables

    @contextmanager
    def for_now(
        self,
        recipe: RecipeSource,
        overrides: Sequence[str] = (),
        unnamed: Mapping[str, Any] | None = None,
    ) -> Iterator[Recipe]:
        """The recipe that names what is given, in files that are there inside alone.

        Args:
            unnamed: tables of the recipe, if it does not have them.

        Raises:
            UserError: bad input.
        """
        tables = load_tables(recipe, overrides)
        tables.pop("compare", None)
        tables = {**(unnamed or {}), **expand_variables(tables)}
        with TemporaryDirectory() as folder:
            try:
                named = parse_recipe(self.completed(tables, Path(folder)), source_of(recipe))
                self.write(Path(folder))
                yield named
            except UserError as error:  # of files that are gone by the time it is read
                raise UserError(str(error).replace(f"{folder}/", "")) from error

    def write(self, folder: Path) -> None:
        """Write all of it into the folder, which is made if it is not there.

        Raises:
            UserError: a record is no dict, or has what JSON cannot say; or the disk is full.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.model is not None and self.tokenizer is not None:
                transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
                self.model.save_pretrained(folder / "base")
                self.tokenizer.save_pretrained(folder / "base")
            if self.clients is not None:
                (folder / "data" / "clients").mkdir(parents=True)
                for name, records in self.clients.items():
                    file = folder / "data" / "clients" / f"{name}{_suffix(records)}"
                    _write_records(file, records, f"clients[{name!r}]")
            if self.test is not None:
                (folder / "data").mkdir(exist_ok=True)
                _write_records(folder / "data" / _test_file(self.test), self.test, "test")
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(
                f"{folder}: cannot be written ({reason}); free some space, or name another folder."
            ) from error


def start_with(
    given: Given,
    recipe: RecipeSource,
    path: Path,
    callbacks: Sequence[Callback] = (),
    overrides: Sequence[str] = (),
    trainer: Trainer | None = None,
) -> dict[str, Any]:
    """Carry out a recipe into a new folder, with what is given; return the summary.

    Args:
        trainer: as for ``runs.run.start``.

    Raises:
        UserError: bad input, or a round in which no client could work.
    """
    folder, path = RunFolder(path), path.absolute()
    begun = path.with_name(path.name + ".partial")
    folder.check_unused()
    tables = load_tables(recipe, overrides)
    tables.pop("compare", None)
    tables = expand_variables(tables)

    def naming(where: Path) -> Recipe:
        named = parse_recipe(given.completed(tables, where), source_of(recipe))
        return with_trainer(named, trainer)

    # Made beside its final place and moved there, so that no half of a run is ever found.
    shutil.rmtree(begun, ignore_errors=True)  # of a process that was killed
    try:
        there = naming(begun)
        given.write(begun)
        assembly = assemble(there, trainer)
        moved = settled(naming(path), assembly.recipe.data.date)
        moved = resolved(moved, choose(moved))
        RunFolder(begun).write_recipe(moved)
        if path.exists():
            path.rmdir()
        begun.rename(path)
    except UserError as error:  # of files that are gone by the time it is read
        raise UserError(str(error).replace(f"{begun}/", "")) from error
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    return carry_out(folder, replace(assembly, recipe=moved), callbacks)


def _name(tables: dict[str, Any], table: str, key: str, value: Any, argument: str) -> None:
    """Have a key of the recipe say what is given.

    Raises:
        UserError: it says something else.
    """
    keys = tables.setdefault(table, {})
    if not isinstance(keys, dict):
        raise UserError(f"{table}: this is no table of the recipe; give a dict of its keys.")
    if keys.setdefault(key, value) != value:
        raise UserError(
            f"{table}.{key}: the recipe says {keys[key]!r}, and {argument} gives something else; "
            f"leave one of the two out (overrides=['{table}.{key}='] leaves out the recipe's)."
        )


def _check_names(clients: Mapping[str, Records]) -> None:
    if not clients:
        raise UserError("clients: there is no client; give a dict of each client's records.")
    for name in clients:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(
                f"clients: {name!r} cannot be a client's name, which is to be a file's; take up to "
                "100 letters, digits, '_', '-' and spaces."
            )


def _suffix(records: Records) -> str:
    """What the name of a file of these records ends in."""
    if not isinstance(records, str | Path):
        return ".jsonl"
    return Path(records).name.removeprefix(stem_of(Path(records)))


def _test_file(records: Records) -> str:
    return f"test{_suffix(records)}"


def _write_records(file: Path, records: Records, source: str) -> None:
    """Write records as JSON lines, or copy the file that they are in.

    Args:
        source: what they are called in errors.
    """
    if isinstance(records, str | Path):
        if not Path(records).is_file():
            raise UserError(f"{source}: there is no file {records}; correct the path.")
        shutil.copyfile(records, file)
        return
    number = 0
    with file.open("x", encoding="utf-8") as lines:
        for number, record in enumerate(records, start=1):
            if not isinstance(record, Mapping):
                raise UserError(
                    f"{source}, record {number}: this is {type(record).__name__}, not a dict of "
                    "fields; give a list of dicts, a datasets.Dataset, or a file's path."
                )
            try:
                lines.write(json.dumps(dict(record), allow_nan=False) + "\n")
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{source}, record {number}: JSON cannot say it ({error}); leave that field "
                    "out, or make it a text or a number."
                ) from error
    if number == 0:
        raise UserError(f"{source}: there are no records; give at least one, or leave it out.")
