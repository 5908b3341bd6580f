"""The original Super-NaturalInstructions layout: a folder with one JSON file a task."""

from __future__ import annotations

from pathlib import Path

from fullfed.data.examples import Example
from fullfed.data.files import parse_json, read_text
from fullfed.errors import UserError


def read_task_folder(folder: Path, split: str) -> list[Example]:
    """Every instance of every task file in `folder`, files in order of their names.

    Where the folder stands in a checkout of the original repository, the tasks listed in
    `splits/default/<split>_tasks.txt` beside it are read and no others.

    Raises:
        UserError: no task file, a listed task that is missing, or a file of another shape.
    """
    files = {_task_name(path): path for path in sorted(folder.iterdir()) if _is_json(path)}
    listing = folder.parent / "splits" / "default" / f"{split}_tasks.txt"
    tasks = listing.read_text(encoding="utf-8").split() if listing.is_file() else list(files)
    if not tasks:
        raise UserError(f"{folder} holds no task files; expected .json or .json.gz files in it.")
    missing = [task for task in tasks if task not in files]
    if missing:
        raise UserError(
            f"{folder} lacks {missing[0]}.json, which {listing} lists; "
            "add the file or take its line out."
        )
    return [example for task in tasks for example in read_task(files[task])]


def read_task(path: Path) -> list[Example]:
    """Every instance of one task file."""
    return examples_of_task(path, parse_json(read_text(path), path))


def examples_of_task(path: Path, content: object) -> list[Example]:
    """The same, of a file that has been parsed.

    Raises:
        UserError: a field is missing or has another type; the message names it.
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
        case str(instruction) | [str(instruction), *_]:
            pass
        case _:
            raise UserError(f"{path}: Definition is neither a text nor a list of texts.")
    match content:
        case {"Categories": [str(category), *_]}:
            pass
        case _:
            category = ""
    return [
        _example(path, number, instance, instruction, category)
        for number, instance in enumerate(instances, start=1)
    ]


def _example(path: Path, number: int, instance: object, instruction: str, category: str) -> Example:
    match instance:
        case {"input": str(text), "output": [str(output), *others]} if all(
            isinstance(other, str) for other in others
        ):
            return Example(instruction, text, output, (output, *others), _task_name(path), category)
        case _:
            raise UserError(
                f"{path}, instance {number}: expected an input text and an output list of texts."
            )


def _is_json(path: Path) -> bool:
    return path.name.endswith((".json", ".json.gz"))


def _task_name(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".json")
