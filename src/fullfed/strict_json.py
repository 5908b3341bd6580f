"""JSON from outside, read so that it can have one meaning only.

Python's own reader takes the last of two equal keys, numbers that are not finite, halves of
characters and other encodings than UTF-8. Another reader of the same bytes may see something else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any


def parse_json(data: bytes | str) -> Any:
    """The value in ``data``, UTF-8 if it is bytes.

    Raises:
        ValueError: it is no JSON, has a key twice in one table, a number that is not finite or
            text that is not Unicode, or is nested too deeply.
    """
    text = data if isinstance(data, str) else bytes(data).decode("utf-8")
    try:
        value = json.loads(
            text, object_pairs_hook=_once, parse_constant=_refuse_constant, parse_float=_finite
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a character cannot be encoded
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def check_keys(found: Iterable[str], due: Iterable[str]) -> None:
    """
    Raises:
        ValueError: a table does not have exactly the keys that are due.
    """
    known, there = set(due), set(found)
    if unknown := sorted(there - known):
        raise ValueError(f"there is no {unknown[0][:40]!r}")
    if missing := sorted(known - there):
        raise ValueError(f"{missing[0]!r} is missing")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is there twice")
    return table


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


def _finite(digits: str) -> float:
    """The number; one as large as 1e999 is refused, which JSON would make infinite."""
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits[:40]} is not a finite number")
    return value
