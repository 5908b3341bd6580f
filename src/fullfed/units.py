"""Bytes and seconds as people read them: in the largest unit that fits, with three digits."""

from __future__ import annotations

import math
from collections.abc import Sequence

Units = Sequence[tuple[str, float]]
"""Names and sizes, ascending."""

BYTES: Units = (("B", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("TiB", 2**40))
SECONDS: Units = (("ms", 1e-3), ("s", 1), ("min", 60), ("h", 3600))


def bytes_text(count: float) -> str:
    """A number of bytes: ``bytes_text(10696)`` is "10.4 KiB"."""
    return " ".join(scaled(BYTES, count, count))


def seconds_text(seconds: float) -> str:
    """A duration: ``seconds_text(200)`` is "3.33 min"."""
    return " ".join(scaled(SECONDS, seconds, seconds))


def scaled(units: Units, value: float, reference: float) -> tuple[str, str]:
    """(the value's digits, the unit), in the unit and with the decimals of ``reference``.

    These are such that the reference has three digits. A spread is written with its mean as the
    reference, so that both are in one unit.
    """
    if reference == 0:
        return "0", units[0][0]
    name, size = next((u for u in reversed(units) if reference >= u[1]), units[0])
    decimals = 2 - math.floor(math.log10(reference / size))
    return f"{value / size:,.{max(decimals, 0)}f}", name
