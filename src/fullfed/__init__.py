"""Federated fine-tuning of every parameter of a language model, in kilobytes a round.

What stands in ``__all__`` is for users and stays; everything else may move. Names are imported
when they are first used, so that ``import fullfed`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fullfed.config import Recipe
    from fullfed.methods.catalogue import AggregationEntry, CodecEntry, MethodEntry, register
    from fullfed.recipe_file import load_recipe
    from fullfed.runs.run import Callback, resume
    from fullfed.runs.run import start as run
    from fullfed.sketch import NormalBasis, SignBasis

__version__ = "0.1.0"

__all__ = [
    "AggregationEntry",
    "Callback",
    "CodecEntry",
    "MethodEntry",
    "NormalBasis",
    "Recipe",
    "SignBasis",
    "load_recipe",
    "register",
    "resume",
    "run",
]

_HOMES = {
    "Recipe": "fullfed.config",
    "load_recipe": "fullfed.recipe_file",
    **dict.fromkeys(
        ("AggregationEntry", "CodecEntry", "MethodEntry", "register"), "fullfed.methods.catalogue"
    ),
    **dict.fromkeys(("Callback", "resume", "run"), "fullfed.runs.run"),
    **dict.fromkeys(("NormalBasis", "SignBasis"), "fullfed.sketch"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fullfed' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), "start" if name == "run" else name)


def __dir__() -> list[str]:
    return sorted(__all__)
