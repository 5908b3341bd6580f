"""Training data with their owners: the file, the folder, the source or the value they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import NamedTuple

from fullfed.config_data import DataTable, SourceTable
from fullfed.data.examples import Example
from fullfed.data.record_files import stem_of
from fullfed.data.sources import FoundFile, find_files, is_on_hub, read_examples, read_file
from fullfed.errors import UserError


class _SourceFile(NamedTuple):
    source: SourceTable
    file: FoundFile


def read_training(table: DataTable, root: Path | None = None) -> list[Example]:
    """Every training example, with its owner where ``table.partition`` is one of files, folders,
    columns or sources.

    Args:
        root: what relative paths are relative to; the working folder if None.

    Raises:
        UserError: bad input of any kind, or an owner without examples.
    """
    sources = table.training_sources()
    if table.partition in ("file", "folder"):
        return _read_files(sources, table.partition, root)
    examples = []
    for source in sources:
        own = read_examples(
            source.path, "train", root, source.columns, source.ignore or (), table.by
        )
        if table.partition == "source":
            own = [replace(example, owner=source.name) for example in own]
        examples += own
    return examples


def _read_files(sources: Sequence[SourceTable], partition: str, root: Path | None) -> list[Example]:
    for source in sources:
        if is_on_hub(source.path, root):
            raise UserError(
                f"{source.path} is a hub name, whose data are in no {partition} here; take another "
                "data.partition, or name a folder."
            )
    found = [
        _SourceFile(source, file)
        for source in sources
        for file in find_files(source.path, "train", root)
    ]
    owners = _named_by_file(found) if partition == "file" else _named_by_folder(found)
    examples: dict[str, list[Example]] = {owner: [] for owner in owners}
    for owner, (source, file) in zip(owners, found, strict=True):
        own = read_file(file.path, source.columns, source.ignore or ())
        examples[owner] += [replace(example, owner=owner) for example in own]
    for owner, own in examples.items():
        if not own:
            path = found[owners.index(owner)].file.path
            raise UserError(
                f"{path}: client {owner!r} has no examples; give it some, or take its files out."
            )
    return [example for own in examples.values() for example in own]


def _named_by_file(found: Sequence[_SourceFile]) -> list[str]:
    """A name for each file, all different: as short as can be."""
    stems = [stem_of(file.path) for _, file in found]
    below = [
        (PurePath(source.name) / file.below.parent / stem).as_posix()
        for (source, file), stem in zip(found, stems, strict=True)
    ]
    whole = [(PurePath(source.name) / file.below).as_posix() for source, file in found]
    return next(names for names in (stems, below, whole) if len({*names}) == len(found))


def _named_by_folder(found: Sequence[_SourceFile]) -> list[str]:
    """The name of the folder below its source that each file lies in."""
    for source, file in found:
        if len(file.below.parts) == 1:
            raise UserError(
                f"{file.path} lies in no folder below {source.path}, and data.partition = "
                '"folder" makes one client for each; move it into one, or take the partition '
                '"file".'
            )
    pairs = [(source.name, file.below.parts[0]) for source, file in found]
    folders = {folder for _, folder in pairs}
    alone = len(folders) == len({*pairs})
    return [folder if alone else f"{source}/{folder}" for source, folder in pairs]
