"""Where examples come from: a file, a folder, a pattern of names, the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import NamedTuple

from fullfed.config_data import ColumnsTable
from fullfed.data.examples import Example
from fullfed.data.hub_records import read_hub_records
from fullfed.data.languages import programming_language
from fullfed.data.record_files import READABLE, form_of, read_records
from fullfed.data.records import examples_from_records
from fullfed.data.task_files import examples_of_task, is_task, listed_tasks
from fullfed.errors import UserError
from fullfed.hub import has_wildcards, is_hub_name

# Instructions about code name no category; the papers split them by programming language.
_CODE = re.compile(r"(code|rosetta).?alpaca", re.IGNORECASE)


class FoundFile(NamedTuple):
    """A file of a source.

    Attributes:
        path: of the file.
        below: its path below the source's folder; a pattern's folder is what comes before its
            first wildcard, a file's the one that it lies in.
    """

    path: Path
    below: PurePath


def is_on_hub(source: str, root: Path | None = None) -> bool:
    """Whether a source is a dataset of the hub's: no such path is here, and it is such a name."""
    return not ((root or Path()) / source).exists() and "/" in source and is_hub_name(source)


def find_files(source: str, split: str = "train", root: Path | None = None) -> list[FoundFile]:
    """The files of a source, in order of their paths.

    A folder's are all readable ones in it and below it; hidden ones (their names begin with a
    point), linked folders and what cannot be read are passed over. A pattern's are those that it
    matches, and those of the folders that it matches. Where the folder is the task folder of a
    checkout of natural-instructions, they are those that the checkout lists for ``split``.

    Args:
        source: a file, a folder, or a pattern with the wildcards *, ?, [] and ** (any folders).
        root: what a relative path is relative to; the working folder if None.

    Raises:
        UserError: there is nothing, or nothing that can be read.
    """
    path = (root or Path()) / source
    if path.is_file():
        return [FoundFile(path, PurePath(path.name))]
    if path.is_dir():
        folder, files, holds = path, _files_below(path), "holds"
        files = listed_tasks(folder, files, split) or files
    elif has_wildcards(source):
        folder, files = _matches(path)
        holds = "matches"
    else:
        raise UserError(f"{path} does not exist; check the path, or give a hub name (org/name).")
    if not files:
        raise UserError(f"{path} {holds} no file that can be read ({READABLE}); correct the path.")
    return [FoundFile(file, file.relative_to(folder)) for file in files]


def _files_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent) / name for name in names if not name.startswith(".")]
    return sorted(path for path in found if form_of(path))


def _matches(pattern: Path) -> tuple[Path, list[Path]]:
    """The folder before a pattern's first wildcard, and the files that the pattern stands for."""
    folder = next(parent for parent in pattern.parents if parent.is_dir())
    try:
        matches = list(folder.glob(str(pattern.relative_to(folder))))
    except ValueError as error:
        raise UserError(
            f"{pattern}: ** stands for whole folders only; write it as in data/**/*.jsonl."
        ) from error
    found: set[Path] = set()
    for path in matches:
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            found.update(_files_below(path) if path.is_dir() else [path])
    return folder, sorted(path for path in found if form_of(path))


def read_examples(
    source: str,
    split: str = "train",
    root: Path | None = None,
    columns: ColumnsTable | None = None,
    ignore: Sequence[str] = (),
    by: str | None = None,
) -> list[Example]:
    """All examples of a source, in its order.

    Args:
        source: a file, a folder or a pattern (see ``find_files``; ``record_files.FORMS`` has the
            forms of files); or, where no such path exists, a dataset of the hub (see
            ``hub_records.read_hub_records``). The format is known by the records' fields
            (`formats.FORMATS`); a .json file may be a task file of natural-instructions. Records
            without a category from a file or dataset called CodeAlpaca or RosettaAlpaca get their
            programming language as one.
        split: which split of a hub dataset, or of a task folder that lists its splits.
        root: what a relative path is relative to; the working folder if None.
        columns, ignore, by: see `records.examples_from_records`; task files have their own columns.

    Raises:
        UserError: nothing there, unreadable, malformed, of an unknown format, with a field that
            would be lost, or empty.
    """
    if is_on_hub(source, root):
        records = read_hub_records(source, split)
        examples = examples_from_records(records, columns, ignore, by)
        examples = _with_languages(source.partition("@")[0], examples)
    else:
        files = find_files(source, split, root)
        examples = [e for file in files for e in read_file(file.path, columns, ignore, by)]
    if not examples:
        raise UserError(f"{source} holds no examples; give a source with at least one.")
    return examples


def read_file(
    path: Path,
    columns: ColumnsTable | None = None,
    ignore: Sequence[str] = (),
    by: str | None = None,
) -> list[Example]:
    """The examples of one file, of which there may be none; see ``read_examples``."""
    records = read_records(path)
    if form_of(path) == ".json":
        records = iter(whole := list(records))
        if len(whole) == 1 and is_task(whole[0][1]):
            return examples_of_task(path, whole[0][1], ignore, by)
    return _with_languages(str(path), examples_from_records(records, columns, ignore, by))


def _with_languages(source: str, examples: Iterable[Example]) -> list[Example]:
    if not _CODE.search(PurePath(source).name):
        return list(examples)
    return [
        replace(e, category=e.category or programming_language(e.instruction, e.input, e.output))
        for e in examples
    ]
