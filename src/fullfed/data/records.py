"""From the records of a dataset to examples."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fullfed.config_data import ColumnsTable
from fullfed.data.conversations import (
    check_characters,
    conversation,
    is_conversation,
    tools_of,
)
from fullfed.data.examples import TEXT, Example, Turn
from fullfed.data.formats import Format, formats_of, is_empty, recognise, refuse_lost
from fullfed.data.tokenizer import shared_length
from fullfed.errors import UserError

# The samples of a task have these in common, and an instruction may be long: equal ones are kept
# as one string.
_OFTEN_EQUAL = ("prompt", "system", "task", "category")


def examples_from_records(
    records: Iterable[tuple[str, object]],
    columns: ColumnsTable | None = None,
    ignore: Sequence[str] = (),
    by: str | None = None,
) -> list[Example]:
    """The examples of (place, record) pairs; `place` is how messages name the record.

    Args:
        columns: what the records' fields are called, where their format does not say it.
        ignore: record fields that are taken for absent.
        by: the record field that says whose an example is, if one does.

    Raises:
        UserError: a record is no object, has no known format or another one than the
            first record, a field of the wrong type, one that would be lost, or no owner.
    """
    examples: list[Example] = []
    expected: Format | None = None
    formats = formats_of(columns or ColumnsTable())
    named = [name for _, name in columns or () if name is not None]
    found_names: set[str] = set()
    for place, record in records:
        if not isinstance(record, dict):
            raise UserError(
                f"{place}: expected a JSON object with fields, found {type(record).__name__}; "
                "write one object a record."
            )
        owner = "" if by is None else owner_of(place, record, by)
        record = {name: value for name, value in record.items() if name not in ignore}
        found = recognise(place, record, formats, expected, named)
        expected = expected or found
        if found is not expected:
            raise UserError(
                f"{place}: a {found.name} record in a file that began with {expected.name} "
                "records; keep one format a file."
            )
        read = _read(place, record, expected, ignore)
        refuse_lost(place, record, expected, _texts(read), by)
        examples.append(replace(read, owner=owner))
        found_names |= record.keys()
    for name in named:
        if examples and name not in found_names:
            ours = next(ours for ours, theirs in columns or () if theirs == name)
            raise UserError(
                f"{place}: neither this record nor any before it has the field {name!r}, which "
                f"columns.{ours} names; correct it."
            )
    return examples


def owner_of(place: str, record: Mapping[str, Any], by: str) -> str:
    """Whose a record is: the text of its field ``by``, numbers and booleans as JSON writes them.

    Raises:
        UserError: there is nothing in the field, or a list or an object.
    """
    value = record.get(by)
    if is_empty(value):
        raise UserError(
            f"{place}: the record has nothing in {by!r}, by which data.by tells clients apart; add "
            "it, or take the record out."
        )
    if isinstance(value, str):
        check_characters(f"{place}, field {by!r}", value)
        return sys.intern(value)
    if isinstance(value, bool | int | float):
        return sys.intern(json.dumps(value))
    raise UserError(
        f"{place}: field {by!r} is {type(value).__name__}, which names no client; data.by takes a "
        "field of texts, numbers or booleans."
    )


def _texts(example: Example) -> list[str]:
    """All that an example says, without white space around it."""
    said = [text for m in (*example.messages, *example.rejected) for text in (m.content, m.context)]
    return [text.strip() for text in said if text.strip()]


def _read(place: str, record: Mapping[str, Any], format_: Format, ignore: Sequence[str]) -> Example:
    """The example of a record, whatever its format."""
    fields = _Fields(place, record, format_, ignore)
    rejected: tuple[Turn, ...] = ()
    if "chosen" in format_.required:
        messages, rejected = _preference(place, fields)
    elif "messages" in format_.required:
        messages = fields.conversation("messages")
    elif "text" in format_.required:
        messages = [Turn(TEXT, fields.text("text"), learned=True)]
    else:
        messages = [*fields.history(), *fields.question(), *fields.answer("completion")]
    messages = [*fields.system(messages), *messages]
    if messages[0].role == "assistant":  # it answers nobody
        messages[0] = replace(messages[0], learned=False)
    messages = _answered(place, messages)
    last = next(m for m in reversed(messages) if m.learned)
    return Example(
        tuple(messages),
        () if last.role == TEXT else fields.references() or (last.content,),
        rejected,
        fields.tools(),
        fields.text("task"),
        fields.text("category"),
        place=place,
    )


def _answered(place: str, messages: list[Turn]) -> list[Turn]:
    """The messages up to the last that is learned.

    Raises:
        UserError: none is.
    """
    while messages and not messages[-1].learned:
        messages.pop()
    if not messages:
        raise UserError(
            f"{place}: no message of an assistant's is there to learn; take the record out."
        )
    return messages


def _preference(place: str, fields: _Fields) -> tuple[list[Turn], tuple[Turn, ...]]:
    """The prompt with the chosen answer, and the rejected answer.

    Where both answers begin with the same messages, or as texts of the same words, these are the
    prompt.

    Raises:
        UserError: nothing says what both answer, or the record says it twice and differently.
    """
    chosen, rejected = fields.answer("chosen"), fields.answer("rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if fields.has("messages"):
        asked = fields.conversation("messages")
    elif shared:
        asked = chosen[:shared]
        said = {turn.text.strip() for turn in asked}
        if not said >= {turn.text.strip() for turn in fields.question()}:
            raise UserError(
                f"{place}: the prompt is not what both answers begin with; keep one of the two."
            )
    else:
        asked = [*fields.history(), *fields.question()]
    if not asked and fields.are_texts("chosen", "rejected"):
        return _text_preference(place, chosen[0].content, rejected[0].content)
    chosen, rejected = chosen[shared:], rejected[shared:]
    if not asked or chosen[0].role != "assistant" or rejected[0].role != "assistant":
        raise UserError(
            f"{place}: 'chosen' and 'rejected' are not two answers to the same; have them begin "
            "with the same messages, or give a prompt."
        )
    prompt = [replace(message, learned=False) for message in asked]
    return [*prompt, *chosen], tuple(replace(message, learned=False) for message in rejected)


def _text_preference(place: str, chosen: str, rejected: str) -> tuple[list[Turn], tuple[Turn, ...]]:
    """Texts that have their prompt in them: it is what they share, up to a white space."""
    shared = chosen[: shared_length(chosen, rejected)]
    start = max((n + 1 for n, character in enumerate(shared) if character.isspace()), default=0)
    prompt = chosen[:start]
    if not prompt.strip():
        raise UserError(
            f"{place}: 'chosen' and 'rejected' share no beginning that both answer; give a prompt."
        )
    return (
        [Turn(TEXT, prompt), Turn(TEXT, chosen[start:], learned=True)],
        (Turn(TEXT, rejected[start:]),),
    )


class _Fields:
    """A record's fields by our names.

    Args:
        ignore: fields of messages that are taken for absent.
    """

    def __init__(
        self, place: str, record: Mapping[str, Any], format_: Format, ignore: Sequence[str]
    ) -> None:
        self._place, self._record, self._ignore = place, record, ignore
        self._format, self._names = format_, format_.fields

    def has(self, ours: str) -> bool:
        return not is_empty(self._value(ours))

    def _value(self, ours: str) -> object:
        return self._record.get(self._names[ours]) if ours in self._names else None

    def are_texts(self, *ours: str) -> bool:
        return all(isinstance(self._value(one), str) for one in ours)

    def text(self, ours: str) -> str:
        """A text; "" where a field that need not be there is not."""
        value = self._value(ours)
        name = self._names.get(ours)
        if value is None and ours not in self._format.required:
            return ""
        if not isinstance(value, str):
            raise UserError(
                f"{self._place}: field {name!r} is {type(value).__name__}, not text; write it as "
                "a string."
            )
        check_characters(f"{self._place}, field {name!r}", value)
        return sys.intern(value) if ours in _OFTEN_EQUAL else value

    def conversation(self, ours: str) -> list[Turn]:
        """A list of messages."""
        return conversation(self._place, self._names[ours], self._value(ours), self._ignore)

    def question(self) -> list[Turn]:
        """What is asked: a text and its context, or messages; none where there is no prompt."""
        if not is_conversation(self._value("prompt")):
            prompt, context = self.text("prompt"), self.text("context")
            asked = "prompt" in self._format.required or self.has("prompt")
            return [Turn("user", prompt, context=context)] if asked else []
        earlier = [replace(m, learned=False) for m in self.conversation("prompt")]
        return [*earlier[:-1], replace(earlier[-1], context=self.text("context"))]

    def answer(self, ours: str) -> list[Turn]:
        """What is answered: a text, a message, or several."""
        value = self._value(ours)
        if isinstance(value, dict):
            return conversation(self._place, self._names[ours], [value], self._ignore)
        if is_conversation(value):
            return self.conversation(ours)
        return [Turn("assistant", self.text(ours), learned=True)]

    def history(self) -> list[Turn]:
        """Earlier questions and answers: pairs of texts."""
        pairs = self._value("history") if self.has("history") else []
        messages = list[Turn]()
        for pair in pairs if isinstance(pairs, list) else []:
            match pair:
                case [str(question), str(answer)]:
                    messages.append(Turn("user", question))
                    messages.append(Turn("assistant", answer, learned=True))
                case _:
                    raise UserError(
                        f"{self._place}: field {self._names['history']!r} is no list of pairs of "
                        "texts; write a question and its answer in each."
                    )
        for message in messages:
            check_characters(f"{self._place}, field 'history'", message.content)
        if not isinstance(pairs, list):
            raise UserError(
                f"{self._place}: field {self._names['history']!r} is no list; write pairs of texts."
            )
        return messages

    def system(self, messages: Sequence[Turn]) -> list[Turn]:
        """What the record says apart from its messages that the assistant is to be."""
        said = self.text("system")
        if not said.strip() or said in [m.content for m in messages if m.role == "system"]:
            return []
        if messages and messages[0].role == "system":
            raise UserError(
                f"{self._place}: two system messages, one in {self._names['system']!r}; keep one."
            )
        return [Turn("system", said)]

    def references(self) -> tuple[str, ...]:
        """Every accepted answer; empty where the record does not list them."""
        value = self._value("references")
        if is_empty(value):
            return ()
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            for text in value:
                check_characters(f"{self._place}, field 'references'", text)
            return tuple(value)
        name = self._names["references"]
        raise UserError(
            f"{self._place}: field {name!r} is no list of texts; write a list of strings."
        )

    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """What the assistant may call."""
        return tools_of(self._place, self._value("tools")) if self.has("tools") else ()
