"""What keys mean, as the docstrings of their classes say it under ``Attributes:``."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

_SECTION = re.compile(r"^Attributes:\n((?:(?: {4}.*)?\n?)*)", re.MULTILINE)
_ENTRY = re.compile(r"([a-z]\w*)(?: \(([^)]+)\))?: (.*)")


class Meaning(NamedTuple):
    """Of one key.

    Attributes:
        text: a sentence.
        unit: what its number counts; "" where it has none.
    """

    text: str
    unit: str


def meanings(table: type) -> dict[str, Meaning]:
    """The meaning of each attribute that a class, or one that it is made from, describes.

    An entry is "name: meaning" or "name (unit): meaning".
    """
    found: dict[str, Meaning] = {}
    for one in reversed(table.__mro__):
        section = _SECTION.search(inspect.cleandoc(one.__doc__ or ""))
        entries = re.split(r"^ {4}(?! )", section[1], flags=re.MULTILINE) if section else []
        for entry in entries:
            if match := _ENTRY.fullmatch(" ".join(entry.split())):
                name, unit, text = match.groups()
                text = text.replace("``", "`")
                found[name] = Meaning(text, unit or "")
    return found


def summary(table: type) -> str:
    """The first paragraph of a class's docstring, in one line; "" where it has none."""
    first = inspect.cleandoc(table.__doc__ or "").partition("\n\n")[0]
    return "" if first.startswith("Attributes:") else " ".join(first.replace("``", "`").split())
