"""Where examples come from: files, task folders, the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fullfed.data.examples import Example
from fullfed.data.files import parse_json, parse_json_lines, read_text
from fullfed.data.formats import examples_from_records
from fullfed.data.hub import is_hub_name, read_hub_records
from fullfed.data.languages import programming_language
from fullfed.data.task_folder import examples_of_task, read_task_folder
from fullfed.errors import UserError

# Instructions about code name no category; the papers split them by programming language.
_CODE = re.compile(r"(code|rosetta).?alpaca", re.IGNORECASE)


def read_examples(source: str, split: str = "train", root: Path | None = None) -> list[Example]:
    """All examples of a source, in its order.

    Args:
        source: a .jsonl or .json file, plain or .gz; a folder of original
            Super-NaturalInstructions task files; or, where no such path exists, a Hugging
            Face dataset "org/name" or "org/name:config" (extra `hub`). The format is known
            by the records' fields (`formats.FORMATS`). Records without a category from a
            source called CodeAlpaca or RosettaAlpaca get their programming language as one.
        split: which split of a hub dataset, or of a task folder that lists its splits.
        root: what a relative path is relative to; the working folder if None.

    Raises:
        UserError: nothing there, unreadable, malformed, of an unknown format, or empty.
    """
    path = (root or Path()) / source
    if path.is_dir():
        examples = read_task_folder(path, split)
    elif path.is_file():
        examples = _read_file(path)
    elif is_hub_name(source):
        examples = examples_from_records(read_hub_records(source, split))
    else:
        raise UserError(f"{path} does not exist; check the path, or give a hub name (org/name).")
    if not examples:
        raise UserError(f"{source} holds no examples; give a source with at least one.")
    if _CODE.search(source.rsplit("/", 1)[-1]):
        examples = [e if e.category else _with_language(e) for e in examples]
    return examples


def _read_file(path: Path) -> list[Example]:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".jsonl":
        return examples_from_records(parse_json_lines(read_text(path), path))
    if suffix == ".json":
        return _read_json(path)
    raise UserError(f"{path} is no .jsonl or .json file (plain or .gz); convert it to one.")


def _read_json(path: Path) -> list[Example]:
    """A list of records, one task file, or JSON lines under the other name."""
    text = read_text(path)
    first_line, _, rest = text.strip().partition("\n")
    if rest and first_line.startswith("{") and first_line.rstrip().endswith("}"):
        return examples_from_records(parse_json_lines(text, path))
    content = parse_json(text, path)
    if isinstance(content, dict) and "Instances" in content:
        return examples_of_task(path, content)
    return examples_from_records(
        _numbered(content if isinstance(content, list) else [content], path)
    )


def _numbered(records: list[object], path: Path) -> Iterator[tuple[str, object]]:
    for number, record in enumerate(records, start=1):
        yield f"{path}, record {number}", record


def _with_language(example: Example) -> Example:
    language = programming_language(example.instruction, example.input, example.output)
    return replace(example, category=language)
