"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

_UNITS = {
    **{"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9},
    **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
}


def parse_bytes(text: str) -> int:
    """The number of bytes in a text like "32KiB".

    Raises:
        ValueError: it is not a number with a unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B|B)\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a number of bytes such as '32KiB'")
    return int(float(match[1]) * _UNITS[match[2]])
