"""From the records of a dataset to examples: a format is known by the fields it has."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fullfed.errors import UserError


@dataclass(frozen=True, slots=True)
class Example:
    """One sample of an instruction dataset, whatever file it was read from.

    Attributes:
        instruction: what to do.
        input: what to do it to; "" where the instruction says it all.
        output: the answer that is trained on.
        references: every accepted answer, at least the output.
        task: the name of the task, "" where the source has none.
        category: the kind of task, "" where the source has none.
    """

    instruction: str
    input: str
    output: str
    references: tuple[str, ...]
    task: str = ""
    category: str = ""


@dataclass(frozen=True)
class Format:
    """Which field of a record holds which field of an `Example`.

    Attributes:
        name: what the format is called in messages.
        required: example field -> record field; a record with all of them has this format.
        optional: the same for fields that may be absent or null.
    """

    name: str
    required: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)


# The samples of a task have these in common, and an instruction may be long: equal ones are kept
# as one string.
_OFTEN_EQUAL = {"instruction", "task", "category"}

# The first format whose required fields a record has is the one it is read by.
FORMATS = (
    Format(
        "natural-instructions",
        {"instruction": "definition", "input": "input", "output": "output", "task": "task"},
        {"references": "references", "category": "category"},
    ),
    Format(  # as Muennighoff/natural-instructions on the hub has it
        "natural-instructions (hub)",
        {"instruction": "definition", "input": "inputs", "output": "targets", "task": "task_name"},
    ),
    Format(
        "Dolly",
        {"instruction": "instruction", "output": "response"},
        {"input": "context", "category": "category"},
    ),
    Format("GSM8K", {"instruction": "question", "output": "answer"}),
    Format(
        "Alpaca",
        {"instruction": "instruction", "output": "output"},
        {"input": "input", "references": "references", "task": "task", "category": "category"},
    ),
)


def examples_from_records(records: Iterable[tuple[str, object]]) -> list[Example]:
    """The examples of (place, record) pairs; `place` is how messages name the record.

    Raises:
        UserError: a record is no object, has no known format or another one than the
            first record, or a field of the wrong type.
    """
    examples: list[Example] = []
    expected: Format | None = None
    for place, record in records:
        if not isinstance(record, dict):
            raise UserError(
                f"{place}: expected a JSON object with fields, found {type(record).__name__}; "
                "write one object a record."
            )
        found = _recognise(place, record)
        expected = expected or found
        if found is not expected:
            raise UserError(
                f"{place}: a {found.name} record in a file that began with {expected.name} "
                "records; keep one format a file."
            )
        examples.append(_read(place, record, expected))
    return examples


def _recognise(place: str, record: Mapping[str, Any]) -> Format:
    for candidate in FORMATS:
        if all(name in record for name in candidate.required.values()):
            return candidate
    known = "; ".join(f"{f.name}: {', '.join(f.required.values())}" for f in FORMATS)
    raise UserError(
        f"{place}: fields {', '.join(map(str, record)) or '(none)'} fit no known format; "
        f"rename them to one of these ({known})."
    )


def _read(place: str, record: Mapping[str, Any], format_: Format) -> Example:
    names = {**format_.required, **format_.optional}
    texts = {
        ours: _text(place, record, theirs, required=ours in format_.required)
        for ours, theirs in names.items()
        if ours != "references"
    }
    references = record.get(names["references"]) if "references" in names else None
    for ours in _OFTEN_EQUAL & texts.keys():
        texts[ours] = sys.intern(texts[ours])
    return Example(
        instruction=texts["instruction"],
        input=texts.get("input", ""),
        output=texts["output"],
        references=_references(place, references or [texts["output"]]),
        task=texts.get("task", ""),
        category=texts.get("category", ""),
    )


def _text(place: str, record: Mapping[str, Any], name: str, required: bool) -> str:
    value = record.get(name)
    if isinstance(value, str):
        _check_characters(place, name, value)
        return value
    if value is None and not required:
        return ""
    raise UserError(
        f"{place}: field {name!r} is {type(value).__name__}, not text; write it as a string."
    )


def _references(place: str, value: object) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        for text in value:
            _check_characters(place, "references", text)
        return tuple(value)
    raise UserError(f"{place}: field 'references' is no list of texts; write a list of strings.")


def _check_characters(place: str, name: str, text: str) -> None:
    """UserError if an escape such as \\ud800 without its other half is in a text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: field {name!r} has half a character (\\u{ord(text[error.start]):x}); "
            "write both halves or leave it out."
        ) from error
