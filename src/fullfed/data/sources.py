"""Where examples come from: files, folders of natural-instructions tasks, the Hugging Face hub.

Errors say which file and which line.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fullfed.config import ColumnsTable
from fullfed.data.examples import Example
from fullfed.data.formats import Format, refuse_lost
from fullfed.data.languages import programming_language
from fullfed.data.records import examples_from_records
from fullfed.errors import UserError
from fullfed.hub import is_hub_name, is_reachable, refuse_pointer


def read_text(path: Path) -> str:
    """The whole file as text.

    Raises:
        UserError: the file cannot be read, is a damaged gzip file or is not UTF-8.
    """
    try:
        data = path.read_bytes()
        refuse_pointer(path)
        # A byte order mark, as some editors write it, is no part of the text.
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; convert it first ({error}).") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file; fetch it again ({error}).") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _parsed(text: str, path: Path, line: int | None = None) -> object:
    """The one JSON value in the content of ``path``, or in one of its lines."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers too long and brackets too deep as well
        line = line or getattr(error, "lineno", None)
        place = f"{path}" if line is None else f"{path}, line {line}"
        reason = getattr(error, "msg", error)
        raise UserError(f"{place}: malformed JSON ({reason}); mend or remove it.") from error


def _parsed_lines(text: str, path: Path) -> Iterator[tuple[str, object]]:
    """(place, value) of every line of ``text`` that is not blank; ``place`` names file and line."""
    # Not str.splitlines: JSON may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", _parsed(line, path, number)


def read_hub_records(source: str, split: str) -> Iterator[tuple[str, object]]:
    """(place, record) of every row of a dataset's split; `place` names dataset, split and row.

    Raises:
        UserError: the extra `hub` is not installed, or the dataset, its configuration or
            split cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f'{source} is a hub name; install what reads it with pip install "fullfed[hub]".'
        ) from error
    name, _, config = source.partition(":")
    if not is_reachable():
        raise UserError(
            f"{source}: there is no such file or folder here, and the hub cannot be reached from "
            "this machine; name a file, or set HF_HUB_OFFLINE=1 to use what was fetched before."
        )
    try:
        rows = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source} is neither a file or folder here nor a dataset with a split {split!r} "
            f"that can be loaded from the hub ({str(error).splitlines()[0]})."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{source}, split {split}, row {number}", dict(row)


# Instructions about code name no category; the papers split them by programming language.
_CODE = re.compile(r"(code|rosetta).?alpaca", re.IGNORECASE)


def read_examples(
    source: str,
    split: str = "train",
    root: Path | None = None,
    columns: ColumnsTable | None = None,
    ignore: Sequence[str] = (),
) -> list[Example]:
    """All examples of a source, in its order.

    Args:
        source: a .jsonl or .json file, plain or .gz; a folder of original
            Super-NaturalInstructions task files; or, where no such path exists, a Hugging
            Face dataset "org/name" or "org/name:config" (extra `hub`). The format is known
            by the records' fields (`records.FORMATS`). Records without a category from a
            source called CodeAlpaca or RosettaAlpaca get their programming language as one.
        split: which split of a hub dataset, or of a task folder that lists its splits.
        root: what a relative path is relative to; the working folder if None.
        columns, ignore: see `records.examples_from_records`; task files have their own names.

    Raises:
        UserError: nothing there, unreadable, malformed, of an unknown format, with a field that
            would be lost, or empty.
    """
    path = (root or Path()) / source
    if path.is_dir():
        examples = read_task_folder(path, split, ignore)
    elif path.is_file():
        examples = _read_file(path, columns, ignore)
    elif "/" in source and is_hub_name(source):
        examples = examples_from_records(read_hub_records(source, split), columns, ignore)
    else:
        raise UserError(f"{path} does not exist; check the path, or give a hub name (org/name).")
    if not examples:
        raise UserError(f"{source} holds no examples; give a source with at least one.")
    if _CODE.search(source.rsplit("/", 1)[-1]):
        examples = [
            replace(
                e, category=e.category or programming_language(e.instruction, e.input, e.output)
            )
            for e in examples
        ]
    return examples


def _read_file(path: Path, columns: ColumnsTable | None, ignore: Sequence[str]) -> list[Example]:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".jsonl":
        return examples_from_records(_parsed_lines(read_text(path), path), columns, ignore)
    if suffix == ".json":
        return _read_json(path, columns, ignore)
    raise UserError(f"{path} is no .jsonl or .json file (plain or .gz); convert it to one.")


def _read_json(path: Path, columns: ColumnsTable | None, ignore: Sequence[str]) -> list[Example]:
    """A list of records, one task file, or JSON lines under the other name."""
    text = read_text(path)
    first_line, _, rest = text.strip().partition("\n")
    if rest and first_line.startswith("{") and first_line.rstrip().endswith("}"):
        return examples_from_records(_parsed_lines(text, path), columns, ignore)
    content = _parsed(text, path)
    if isinstance(content, dict) and "Instances" in content:
        return _examples_of_task(path, content, ignore)
    records = content if isinstance(content, list) else [content]
    placed = ((f"{path}, record {number}", one) for number, one in enumerate(records, start=1))
    return examples_from_records(placed, columns, ignore)


def read_task_folder(folder: Path, split: str, ignore: Sequence[str] = ()) -> list[Example]:
    """Every instance of every task file in `folder`, files in order of their names.

    Where the folder stands in a checkout of the original repository, the tasks listed in
    `splits/default/<split>_tasks.txt` beside it are read and no others.

    Raises:
        UserError: no task file, a listed task that is missing, or a file of another shape.
    """
    files = {
        _task_name(path): path
        for path in sorted(folder.iterdir())
        if path.name.endswith((".json", ".json.gz"))
    }
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
    return [
        example
        for task in tasks
        for example in _examples_of_task(
            files[task], _parsed(read_text(files[task]), files[task]), ignore
        )
    ]


# What an instance of a task file has; its definition and category are the file's.
_INSTANCE = Format("a task file", {"context": "input", "completion": "output"})


def _examples_of_task(path: Path, content: object, ignore: Sequence[str]) -> list[Example]:
    """Every instance of a task file, whose JSON is ``content``.

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
    return [
        _example(path, number, instance, instruction, category, ignore)
        for number, instance in enumerate(instances, start=1)
    ]


def _example(
    path: Path,
    number: int,
    instance: object,
    instruction: str,
    category: str,
    ignore: Sequence[str],
) -> Example:
    place = f"{path}, instance {number}"
    match instance:
        case {"input": str(text), "output": [str(output), *others], **rest} if all(
            isinstance(other, str) for other in others
        ):
            kept = {str(name): value for name, value in rest.items() if name not in ignore}
            refuse_lost(place, kept, _INSTANCE, [text, output])
            accepted = (output, *others)
            return Example.single(instruction, text, output, accepted, _task_name(path), category)
        case _:
            raise UserError(f"{place}: expected an input text and an output list of texts.")


def _task_name(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".json")
