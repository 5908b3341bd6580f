"""What the keys of a recipe can be: kinds of values that several of its tables have."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

NOT_BOTH = "not both (on the command line --set KEY= leaves a key of the recipe out)"
_UNITS = {
    **{"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30},
}


def parse_bytes(amount: str | int) -> int:
    """The number of bytes in a text like "32KiB", in capitals or not, or the number itself.

    Raises:
        ValueError: it is neither a number nor one with a unit, or is negative.
    """
    if isinstance(amount, bool) or not isinstance(amount, int | str):
        raise ValueError(f"{str(amount)[:40]} is not a number of bytes such as 4096 or '32KiB'")
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmg]i?b|b|)\s*", str(amount).lower())
    if match is None:
        raise ValueError(f"{amount!r} is not a number of bytes such as 4096 or '32KiB'")
    return int(float(match[1]) * _UNITS[match[2] or "b"])


Positive = Annotated[int, Field(gt=0)]
Source = Annotated[str, AfterValidator(os.path.expanduser)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bytes = Annotated[
    int,
    Field(ge=0),
    BeforeValidator(parse_bytes),
    WithJsonSchema({"type": ["integer", "string"], "minimum": 0}),
]


class RecipeTable(BaseModel):
    """A table of a recipe: no other keys than its own, and nothing in it changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
