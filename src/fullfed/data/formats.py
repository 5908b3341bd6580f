"""What formats of records there are, told apart by the fields that a record has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from fullfed.config_data import ColumnsTable
from fullfed.errors import UserError


@dataclass(frozen=True)
class Format:
    """Which field of a record holds what; ours are those of ``config_data.ColumnsTable``.

    Attributes:
        name: what the format is called in messages.
        required: our field -> record field; a record with all of them has this format.
        optional: the same for fields that may be absent or null.
        about: record fields that say where a published record is from, and are not read.
    """

    name: str
    required: dict[str, str]
    optional: dict[str, str] = field(default_factory=dict)
    about: tuple[str, ...] = ("id", "idx")

    @property
    def fields(self) -> dict[str, str]:
        return self.required | self.optional


_LABELS = {name: name for name in ("references", "task", "category")}
_TURNS = {name: name for name in ("system", "history", *_LABELS)}
_TALK = {name: name for name in ("system", "tools", *_LABELS)}

# The first format whose required fields a record has is the one it is read by.
FORMATS = (
    Format(
        "preferences (ShareGPT)",
        {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        _TALK,
    ),
    Format(
        "preferences (Alpaca)",
        {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
        {"context": "input", **_TURNS},
    ),
    Format(
        "preferences (questions)",
        {"prompt": "question", "chosen": "chosen", "rejected": "rejected"},
        _TURNS,
    ),
    Format(
        "preferences",
        {"chosen": "chosen", "rejected": "rejected"},
        {"prompt": "prompt", **_TALK},
    ),
    Format("messages", {"messages": "messages"}, _TALK),
    Format("ShareGPT", {"messages": "conversations"}, _TALK),
    Format(
        "natural-instructions",
        {"prompt": "definition", "context": "input", "completion": "output", "task": "task"},
        {"references": "references", "category": "category"},
        ("id", "license"),
    ),
    Format(  # as Muennighoff/natural-instructions on the hub has it
        "natural-instructions (hub)",
        {
            "prompt": "definition",
            "context": "inputs",
            "completion": "targets",
            "task": "task_name",
        },
    ),
    Format(
        "Dolly",
        {"prompt": "instruction", "completion": "response"},
        {"context": "context", "category": "category"},
    ),
    Format("questions and answers", {"prompt": "question", "completion": "answer"}),
    Format(
        "Alpaca",
        {"prompt": "instruction", "completion": "output"},
        {"context": "input", **_TURNS},
    ),
    Format("prompts", {"prompt": "prompt", "completion": "completion"}, _TURNS | _TALK),
    Format("prompts", {"prompt": "prompt", "completion": "response"}, _TURNS),
    Format("queries", {"prompt": "query", "completion": "response"}, _TURNS),
    Format("questions", {"prompt": "question", "completion": "response"}, _TURNS),
    Format("pairs", {"prompt": "input", "completion": "output"}, _TURNS),
    Format("texts", {"text": "text"}, {"task": "task", "category": "category"}),
)


_WORDING = 250  # characters that a template puts around the texts of a record, at most


class UnknownFieldsError(UserError):
    """The fields of a record fit no known format."""


def formats_of(columns: ColumnsTable) -> tuple[Format, ...]:
    """The known formats with the columns that were named; only these if they are enough."""
    named = {ours: name for ours, name in columns if name is not None}
    for enough in (("chosen", "rejected"), ("messages",), ("prompt", "completion"), ("text",)):
        if named.keys() >= set(enough):
            required = {ours: named.pop(ours) for ours in enough}
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


def refuse_lost(
    place: str,
    record: Mapping[str, Any],
    format_: Format,
    texts: Sequence[str],
    by: str | None = None,
) -> None:
    """UserError if a field is neither read nor empty: a model would learn to do without it.

    Args:
        texts: all that is read of the record.
        by: a field that is read besides.
    """
    read = {*format_.fields.values(), *format_.about, by}
    lost = [
        name
        for name, value in record.items()
        if name not in read and not is_empty(value) and not _repeats(value, texts)
    ]
    if lost:
        names = ", ".join(f'"{name}"' for name in lost)
        raise UserError(
            f"{place}: {names} would not be read ({format_.name} has "
            f"{', '.join(format_.fields.values())}); leave it out with "
            f"ignore = [{names}], or, if it belongs to the question, say so with "
            f'columns = {{ context = "{lost[0]}" }}, in [data], on a node in node.toml.'
        )


def _repeats(value: object, texts: Sequence[str]) -> bool:
    """Whether a field only says what is read anyway: one of its texts, or little more than all, as
    Alpaca's "text" is, or messages of such."""
    if isinstance(value, list) and value:
        return all(isinstance(one, dict) and _repeats(one.get("content"), texts) for one in value)
    if not isinstance(value, str) or not texts:
        return False
    whole = len(value) < _WORDING + sum(map(len, texts)) and all(text in value for text in texts)
    return whole or value.strip() in texts


def is_empty(value: object) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | dict) and not value)


def recognise(
    place: str,
    record: Mapping[str, Any],
    formats: Sequence[Format],
    expected: Format | None,
    named: Sequence[str] = (),
) -> Format:
    """The format of a record.

    Args:
        expected: of the records before it; None if it is the first.
        named: the fields that the recipe names in ``data.columns``.

    Raises:
        UserError: it has none; an UnknownFieldsError if it is the first.
    """
    for candidate in formats:
        if all(name in record for name in candidate.required.values()):
            return candidate
    if expected is not None:
        lacking = [name for name in expected.required.values() if name not in record]
        raise UserError(
            f"{place}: the record lacks {' and '.join(map(repr, lacking))}, which the "
            f"{expected.name} records before it have; add it, or take the record out."
        )
    for name in named:
        if name not in record:
            close = get_close_matches(name, map(str, record), 1)
            raise UserError(
                f"{place}: there is no field {name!r}, which columns names; the record has "
                f"{', '.join(map(str, record)) or 'none'}"
                + (f"; did you mean {close[0]!r}?" if close else ".")
            )
    known = "; ".join(f"{f.name}: {', '.join(f.required.values())}" for f in formats)
    raise UnknownFieldsError(
        f"{place}: fields {', '.join(map(str, record)) or '(none)'} fit no known format; "
        f"rename them to one of these ({known}), or say in columns what they are."
    )
