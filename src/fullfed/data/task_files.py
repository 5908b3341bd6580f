"""The task files of natural-instructions: a definition, a category and instances in one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fullfed.data.examples import Example
from fullfed.data.formats import Format, refuse_lost
from fullfed.data.record_files import form_of, stem_of
from fullfed.data.records import owner_of
from fullfed.errors import UserError

# What an instance of a task file has; its definition and category are the file's.
_INSTANCE = Format("a task file", {"context": "input", "completion": "output"})


def listed_tasks(folder: Path, files: Sequence[Path], split: str) -> list[Path] | None:
    """The task files in ``folder`` that a checkout of the original repository lists for a split.

    The list is `splits/default/<split>_tasks.txt` beside the folder.

    Args:
        files: those in the folder and below it.

    Returns:
        The files in the list's order; None where there is no list.

    Raises:
        UserError: a listed file is missing, or the list is empty.
    """
    listing = folder.parent / "splits" / "default" / f"{split}_tasks.txt"
    if not listing.is_file():
        return None
    tasks = listing.read_text(encoding="utf-8").split()
    if not tasks:
        raise UserError(f"{listing} lists no tasks; add the names of some, or remove the file.")
    known = {stem_of(p): p for p in files if p.parent == folder and form_of(p) == ".json"}
    missing = [task for task in tasks if task not in known]
    if missing:
        raise UserError(
            f"{folder} lacks {missing[0]}.json, which {listing} lists; "
            "add the file or take its line out."
        )
    return [known[task] for task in tasks]


def is_task(content: object) -> bool:
    """Whether a JSON file's content is meant to be a task, well formed or not."""
    return isinstance(content, dict) and "Instances" in content


def examples_of_task(
    path: Path, content: object, ignore: Sequence[str], by: str | None
) -> list[Example]:
    """Every instance of a task file, whose JSON is ``content``.

    Args:
        ignore, by: see ``records.examples_from_records``; they are fields of an instance.

    Raises:
        UserError: a field is missing, has another type or would be lost; the message names it.
    """
    match content:
        case {"Definition": definition, "Instances": [*instances]}:
            pass
        case _:
            raise UserError(
                f"{path} is no natural-instructions task file; "
                "it needs a field Definition and a list Instances."
            )
    match definition:
        case str(instruction) | [str(instruction)]:
            pass
        case _:
            raise UserError(f"{path}: Definition is neither a text nor a list of one text.")
    match content:
        case {"Categories": [str(category), *_]}:
            pass
        case _:
            category = ""
    examples = [
        _example(f"{path}, instance {number}", instance, instruction, ignore, by)
        for number, instance in enumerate(instances, start=1)
    ]
    return [replace(example, task=stem_of(path), category=category) for example in examples]


def _example(
    place: str, instance: object, instruction: str, ignore: Sequence[str], by: str | None
) -> Example:
    match instance:
        case {"input": str(text), "output": [str(output), *others], **rest} if all(
            isinstance(other, str) for other in others
        ):
            fields = {str(name): value for name, value in rest.items()}
            owner = "" if by is None else owner_of(place, fields, by)
            kept = {name: value for name, value in fields.items() if name not in ignore}
            refuse_lost(place, kept, _INSTANCE, [text, output], by)
            example = Example.single(instruction, text, output, (output, *others))
            return replace(example, owner=owner, place=place)
        case _:
            raise UserError(f"{place}: expected an input text and an output list of texts.")
