"""From the records of a dataset to examples: a format is known by the fields it has."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fullfed.config import ColumnsTable
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
        about: record fields that say where a published record is from, and are not read.
    """

    name: str
    required: dict[str, str]
    optional: dict[str, str] = field(default_factory=dict)
    about: tuple[str, ...] = ()


# The samples of a task have these in common, and an instruction may be long: equal ones are kept
# as one string.
_OFTEN_EQUAL = {"instruction", "task", "category"}

# The first format whose required fields a record has is the one it is read by.
FORMATS = (
    Format(
        "natural-instructions",
        {"instruction": "definition", "input": "input", "output": "output", "task": "task"},
        {"references": "references", "category": "category"},
        ("license",),
    ),
    Format(  # as Muennighoff/natural-instructions on the hub has it
        "natural-instructions (hub)",
        {"instruction": "definition", "input": "inputs", "output": "targets", "task": "task_name"},
        about=("id",),
    ),
    Format(
        "Dolly",
        {"instruction": "instruction", "output": "response"},
        {"input": "context", "category": "category"},
        ("id", "idx"),
    ),
    Format("GSM8K", {"instruction": "question", "output": "answer"}, about=("id", "idx")),
    Format(
        "Alpaca",
        {"instruction": "instruction", "output": "output"},
        {"input": "input", "references": "references", "task": "task", "category": "category"},
        ("id", "idx"),
    ),
)


_WORDING = 250  # characters that a template puts around the texts of a record, at most

# What a recipe calls the fields of an example.
_OURS = {"prompt": "instruction", "context": "input", "completion": "output"}


def examples_from_records(
    records: Iterable[tuple[str, object]],
    columns: ColumnsTable | None = None,
    ignore: Sequence[str] = (),
) -> list[Example]:
    """The examples of (place, record) pairs; `place` is how messages name the record.

    Args:
        columns: what the records' fields are called, where their format does not say it.
        ignore: record fields that are taken for absent.

    Raises:
        UserError: a record is no object, has no known format or another one than the
            first record, a field of the wrong type, or one that would be lost.
    """
    examples: list[Example] = []
    expected: Format | None = None
    formats = _formats(columns or ColumnsTable())
    context = columns and columns.context
    found_context = False
    for place, record in records:
        if not isinstance(record, dict):
            raise UserError(
                f"{place}: expected a JSON object with fields, found {type(record).__name__}; "
                "write one object a record."
            )
        record = {name: value for name, value in record.items() if name not in ignore}
        found = _recognise(place, record, formats, expected)
        expected = expected or found
        if found is not expected:
            raise UserError(
                f"{place}: a {found.name} record in a file that began with {expected.name} "
                "records; keep one format a file."
            )
        refuse_lost(place, record, expected)
        examples.append(_read(place, record, expected))
        found_context |= context in record
    if context and examples and not found_context:
        raise UserError(
            f"{place}: neither this record nor any before it has the field {context!r}, which "
            "columns.context names; correct it."
        )
    return examples


def _formats(columns: ColumnsTable) -> tuple[Format, ...]:
    """The known formats with the columns that were named; only these if they are enough."""
    named = {_OURS.get(ours, ours): name for ours, name in columns if name is not None}
    if {"instruction", "output"} <= named.keys():
        required = {ours: named.pop(ours) for ours in ("instruction", "output")}
        return (Format("columns", required, named),)
    return tuple(
        replace(
            known,
            required={ours: named.get(ours, name) for ours, name in known.required.items()},
            optional={
                **known.optional,
                **{ours: name for ours, name in named.items() if ours not in known.required},
            },
        )
        for known in FORMATS
    )


def refuse_lost(place: str, record: Mapping[str, Any], format_: Format) -> None:
    """UserError if a field is neither read nor empty: a model would learn to do without it."""
    read = {*format_.required.values(), *format_.optional.values(), *format_.about}
    lost = [
        name
        for name, value in record.items()
        if name not in read and not _is_empty(value) and not _repeats(value, record, format_)
    ]
    if lost:
        names = ", ".join(f'"{name}"' for name in lost)
        raise UserError(
            f"{place}: {names} would not be read ({format_.name} has "
            f"{', '.join((format_.required | format_.optional).values())}); leave it out with "
            f"ignore = [{names}], or, if it belongs to the question, say so with "
            f'columns = {{ context = "{lost[0]}" }}, in [data], on a node in node.toml.'
        )


def _repeats(value: object, record: Mapping[str, Any], format_: Format) -> bool:
    """Whether a text is little more than all texts that are read, as Alpaca's "text" is."""
    read = {*format_.required.values(), *format_.optional.values()}
    texts = [t.strip() for name in read if isinstance(t := record.get(name), str)]
    wording = _WORDING + sum(map(len, texts))
    return (
        isinstance(value, str)
        and bool(texts)
        and len(value) < wording
        and all(text in value for text in texts)
    )


def _is_empty(value: object) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | dict) and not value)


def _recognise(
    place: str, record: Mapping[str, Any], formats: Sequence[Format], expected: Format | None
) -> Format:
    for candidate in formats:
        if all(name in record for name in candidate.required.values()):
            return candidate
    if expected is not None:
        lacking = [name for name in expected.required.values() if name not in record]
        raise UserError(
            f"{place}: the record lacks {' and '.join(map(repr, lacking))}, which the "
            f"{expected.name} records before it have; add it, or take the record out."
        )
    known = "; ".join(f"{f.name}: {', '.join(f.required.values())}" for f in formats)
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
