"""What is wrong with a file's keys and values, in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument")
# pydantic's words for kinds of values, and those of who writes TOML.
_KINDS = {
    "tuple_type": "should be a list",
    "list_type": "should be a list",
    "dict_type": "should be a table",
    "model_type": "should be a table",
    "string_type": "should be a text in quotes",
}


def describe_validation(
    error: ValidationError, prefix: str = "", keys: Collection[str] = (), deepest: int = 8
) -> str:
    """One of the problems pydantic found, in one sentence without its final stop.

    An unknown key comes first: where it is misspelt, another one is missing because of it.

    Args:
        prefix: the table that was validated, where it was not the whole file.
        keys: all that there are, dotted, ``prefix`` included.
        deepest: the most parts of a key below ``prefix``; what pydantic adds to it are the kinds
            of values that it tried.
    """
    problems = error.errors()
    first = next((p for p in problems if p["type"] in _UNKNOWN), problems[0])
    if any(_is_kind(part) for part in first["loc"]):  # the deepest says most of a value's fault
        tried = [p for p in problems if p["loc"][:1] == first["loc"][:1]]
        first = max(tried, key=lambda p: sum(not _is_kind(part) for part in p["loc"]))
    name = _name(first["loc"][:deepest], prefix)
    if first["type"] in _UNKNOWN:
        return f"there is no key {name!r}; {_advice(name, keys)}"
    if first["type"] in _MISSING:
        return f"the key {name!r} is missing; add it"
    said = [_problem(p) for p in problems if _name(p["loc"][:deepest], prefix) == name]
    return f"{name or 'the recipe'}: {', or '.join(dict.fromkeys(said))}"


def _name(location: Sequence[int | str], prefix: str) -> str:
    return ".".join([prefix] * bool(prefix) + [str(p) for p in location if not _is_kind(p)])


def _is_kind(part: int | str) -> bool:
    """Whether a part of a location is one of several kinds that a value may be, which is no key."""
    return isinstance(part, str) and "[" in part


def _problem(problem: Any) -> str:
    message: str = _KINDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    return message[0].lower() + message[1:]


def _advice(name: str, keys: Collection[str]) -> str:
    """What the unknown key may have been meant to be, or what there is in its place."""
    table, _, last = name.rpartition(".")
    beside = list(dict.fromkeys(key.rpartition(".")[2] for key in keys if _in(key, table)))
    close = difflib.get_close_matches(last, beside, n=1)
    elsewhere = [key for key in keys if key.rpartition(".")[2] == last]
    there = f" ({table} has {', '.join(beside)})" if table and beside else ""
    if elsewhere:
        return f"did you mean {elsewhere[0]!r}{there}"
    if close:
        return f"did you mean {name.removesuffix(last) + close[0]!r}"
    return f"remove it or correct its spelling{there}"


def _in(key: str, table: str) -> bool:
    return key.rpartition(".")[0] == table and key != f"{table}.name"


def keys_of(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key that a file of this model may have, dotted; of its tables too."""
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += keys_of(inner, f"{prefix}{name}.")
    return found
