"""What of its recipe a run is bound to, and what may be changed while it lasts.

The log follows from the recipe. A run that went on with another learning rate or another seed would
be neither the one nor the other, so base.json keeps the recipe that the run began with, and whoever
reads the run compares. ``FREE`` keys change nothing that the log or earlier measurements depend on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fullfed.config import Recipe, parse_recipe
from fullfed.errors import UserError

FREE = (
    "model.path",  # base.json has the model's hash
    "model.device",
    "data.train",  # base.json has the hash of the data
    "data.sources.*.path",
    "data.test",
    "check.data",
    "check.trusted",  # who is vouched for is the operator's to say at any time
    "federation.rounds",
    "federation.snapshot_every",
    "federation.keep_updates",
    "memory.checkpoint_activations",  # computes the same once more
    "memory.cache_inputs",
    "evaluation.every",
    "evaluation.batch_size",
    "evaluation.best_by",
    "evaluation.patience",
    "simulation.workers",
    "simulation.threads",  # a line of metrics.jsonl has those that computed (``arithmetic``)
    "deployment.quorum",
    "deployment.deadline_seconds",
)


def free_keys(recipe: Recipe) -> tuple[str, ...]:
    """``FREE``, but for the number of rounds where a schedule of learning rates ends with it, or
    the noise is as much as so many need."""
    privacy = recipe.privacy
    fitted = privacy is not None and privacy.protects is not None and privacy.noise is None
    bound = fitted or recipe.local.schedule != "constant"
    return tuple(key for key in FREE if not (bound and key == "federation.rounds"))


def is_among(key: str, keys: Collection[str]) -> bool:
    """Whether ``keys``, in which * stands for any name, has a dotted key."""
    return any(fnmatchcase(key, one) for one in keys)


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as values by dotted key; a list of named tables as tables by their names."""
    values: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        elif value and isinstance(value, list) and all(map(_is_named, value)):
            values |= flat({table["name"]: table for table in value}, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and "name" in value


def tables_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe as recipe.toml and base.json have it."""
    return recipe.model_dump(mode="json", exclude_none=True)


def check_bound(recipe: Recipe, began: Mapping[str, Any], file: Path) -> None:
    """See that a recipe is still the one that its run began with, but for what is free.

    Args:
        began: ``tables_of`` the recipe that the run began with.
        file: which holds the recipe.

    Raises:
        UserError: a key differs; names each with both values.
    """
    changes = _changes(tables_of(recipe), _spelled(began, file))
    differing = [change for key, change in changes.items() if not is_among(key, free_keys(recipe))]
    if differing:
        raise UserError(
            f"{file}: this is not the recipe that the run began with ({'; '.join(differing)}); "
            "put that back, or begin a new run in another folder."
        )


def _spelled(began: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The tables that a run began with, and the defaults of keys that there were not yet then."""
    return tables_of(parse_recipe(dict(began), str(file)))


def changes_since(
    base: Mapping[str, Any], recipe: Recipe, arithmetic: Mapping[str, Any]
) -> list[str]:
    """What is not as it was when the run began, and may be so; each in one sentence.

    Args:
        base: what base.json holds.
        recipe, arithmetic: as they are now; see ``environment.arithmetic``.
    """
    began = _spelled(base["recipe"], Path("base.json"))
    changes = [
        f"the recipe is not quite the one that the run began with: {change}"
        for key, change in _changes(tables_of(recipe), began).items()
        if is_among(key, FREE)
    ]
    differing = _changes(arithmetic, base["arithmetic"]).values()
    if differing:
        changes.append(
            f"the machine is not the one that the run began on ({'; '.join(differing)}): the "
            "rounds to come will differ in their last bits from those that it would have had"
        )
    return changes


def _changes(now: Mapping[str, Any], began: Mapping[str, Any]) -> dict[str, str]:
    """What differs, by dotted key."""
    before, after = flat(began), flat(now)
    return {
        key: f"{key} was {_said(before, key)} and is {_said(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def _said(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not there"
