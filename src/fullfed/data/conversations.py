"""Conversations in records: lists of messages, in the forms that published data have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fullfed.data.examples import Turn
from fullfed.errors import UserError

# What data call those who speak; a function call is a message of the assistant's.
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    "function_call": "assistant",
}
SPEAKER, _SAID = ("role", "from"), ("content", "value")  # a message's fields: OpenAI's, ShareGPT's
# What chat templates are given of a message beside these.
_MORE = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")


def conversation(place: str, name: str, value: object, ignore: Sequence[str] = ()) -> list[Turn]:
    """The messages of a record's field; assistants' are learned unless their ``weight`` is 0.

    Args:
        place, name: of the record and the field, for errors.
        value: a list of tables, with ``role`` and ``content`` or with ``from`` and ``value``.
        ignore: fields of messages that are taken for absent.

    Raises:
        UserError: it is no such list, or a message has a field that would be lost.
    """
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{place}: field {name!r} is no list of messages; write one.")
    return [
        _message(f"{place}, message {number} of {name!r}", one, ignore)
        for number, one in enumerate(value, start=1)
    ]


def is_conversation(value: object) -> bool:
    """Whether a field's value is a list of messages rather than a text."""
    return isinstance(value, list | tuple)


def _message(place: str, value: object, ignore: Sequence[str]) -> Turn:
    if not isinstance(value, Mapping):
        raise UserError(f"{place}: expected a table with role and content; write it so.")
    # Tables of columnar files have every field of any message, empty where one has it not.
    fields = {str(k): v for k, v in value.items() if k not in ignore and v is not None}
    speaker = next((fields.pop(name) for name in SPEAKER if name in fields), None)
    said = next((fields.pop(name) for name in _SAID if name in fields), "")
    weight = fields.pop("weight", 1)
    call = fields.pop("function_call", None)  # as OpenAI had it before there were several
    if not isinstance(speaker, str) or speaker.lower() not in _ROLES:
        raise UserError(
            f"{place}: the role {speaker!r} is not known; write one of {', '.join(_ROLES)}."
        )
    if weight not in (0, 1):
        raise UserError(f"{place}: the weight {weight!r} is neither 0 nor 1; write one of them.")
    lost = [name for name, content in fields.items() if name not in _MORE and content]
    if lost:
        raise UserError(
            f"{place}: {lost[0]!r} would not be read; leave it out with "
            f'ignore = ["{lost[0]}"], in [data], on a node in node.toml.'
        )
    more = {name: fields[name] for name in _MORE if fields.get(name)}
    role, content = _ROLES[speaker.lower()], _content(place, said)
    if isinstance(call, Mapping):
        more["tool_calls"] = [{"type": "function", "function": dict(call)}]
    if speaker.lower() == "function_call":
        more["tool_calls"] = [{"type": "function", "function": _called(place, content)}]
        content = ""
    return Turn(role, content, learned=role == "assistant" and weight == 1, more=more)


def _content(place: str, said: object) -> str:
    """A message's text, which may come in parts."""
    if isinstance(said, str):
        check_characters(place, said)
        return said
    if isinstance(said, list):
        return "".join(_part(place, part) for part in said)
    raise UserError(f"{place}: its content is {type(said).__name__}, not text; write a string.")


def _part(place: str, part: object) -> str:
    match part:
        case str(text):
            pass
        case {"type": "text", "text": str(text)}:
            pass
        case _:
            raise UserError(f"{place}: a part of its content is no text; take the message out.")
    check_characters(place, text)
    return text


def _called(place: str, content: str) -> dict[str, Any]:
    """The function call that a message of ShareGPT's form is."""
    try:
        match json.loads(content):
            case {"name": str(name), "arguments": arguments}:
                return {"name": name, "arguments": arguments}
    except (ValueError, RecursionError):
        pass  # told below
    raise UserError(
        f'{place}: it is no function call; write {{"name": ..., "arguments": ...}} as JSON.'
    )


def tools_of(place: str, value: object) -> tuple[Mapping[str, Any], ...]:
    """What assistants may call: a list of tables, or the same as JSON.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value or "[]")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: the tools are no JSON ({error}); mend them.") from error
    if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping) for one in value):
        raise UserError(f"{place}: the tools are no list of tables; write one table a tool.")
    return tuple(value)


def check_characters(place: str, text: str) -> None:
    """UserError if an escape such as \\ud800 without its other half is in a text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place} has half a character (\\u{ord(text[error.start]):x}); write both halves or "
            "leave it out."
        ) from error
