"""Which methods a comparison runs, each with its full recipe."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fullfed.config import Recipe, parse_recipe
from fullfed.errors import UserError
from fullfed.methods.catalogue import METHODS
from fullfed.recipe_file import change_method, expand_variables, rename
from fullfed.runs.assembly import choose, resolved
from fullfed.runs.binding import flat

# The tables in which the methods of a comparison may differ; a recipe need not have all of them.
OWN = ("local", "memory", "method", "codec", "aggregation", "trainer")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Contestant:
    """A method as it takes part.

    Attributes:
        label: a name of the catalogue, or of one of the recipe's tables under ``compare``.
        recipe: resolved; its learning rate is where the search for a better one starts.
        changes: what the table under ``compare`` says, by dotted key.
    """

    label: str
    recipe: Recipe
    changes: Mapping[str, Any]


class Task(NamedTuple):
    """What one process does: a run with a seed, or, without one, a method's search."""

    label: str
    seed: int | None = None

    def __str__(self) -> str:
        return f"{self.label} {'search' if self.seed is None else f'seed {self.seed}'}"


def contestants(tables: Mapping[str, Any], labels: Sequence[str], source: str) -> list[Contestant]:
    """A contestant for each label.

    Args:
        tables: a recipe's, as ``load_recipe`` reads them, with [compare.LABEL] among them.
        labels: who takes part, in this order.
        source: the recipe's file, for errors.

    Raises:
        UserError: a label is unknown or given twice, or a recipe or a table is bad.
    """
    if not labels:
        raise UserError(f"methods: no method is named; choose among {', '.join(METHODS)}.")
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"methods: {label} is named twice; name each method once.")
    common = {name: table for name, table in tables.items() if name != "compare"}
    own = tables.get("compare", {})
    if not isinstance(own, dict):
        raise UserError(f"{source}: compare is no table; write [compare.LABEL] over its keys.")
    return [_contestant(common, own, label, source) for label in labels]


def _contestant(
    common: Mapping[str, Any], own: Mapping[str, Any], label: str, source: str
) -> Contestant:
    changes = own.get(label, {})
    if label not in own and label not in METHODS:
        known = ", ".join([*METHODS, *(name for name in own if name not in METHODS)])
        raise UserError(
            f"methods: {label!r} is neither a method nor a table [compare.{label}] of {source}; "
            f"choose among {known}."
        )
    _check_changes(changes, label, source)
    name = changes.get("method", {}).get("name", label)
    if name not in METHODS:
        raise UserError(
            f"{source}: [compare.{label}] is to say which method it is; "
            f"set method.name to one of {', '.join(METHODS)}."
        )
    tables = copy.deepcopy(dict(common))
    change_method(tables, name)
    for table in ("codec", "aggregation"):
        if "name" in changes.get(table, {}):
            rename(tables, table, changes[table]["name"])
    start = METHODS[name].learning_rate
    if start is not None:
        tables = merged(tables, {"local": {"learning_rate": start}})
    tables = expand_variables(merged(tables, changes))
    recipe = parse_recipe(tables, f"{source}, [compare.{label}]" if changes else source)
    recipe = resolved(recipe, choose(recipe))
    return Contestant(label, recipe, flat(changes))


def _check_changes(changes: Any, label: str, source: str) -> None:
    place = f"{source}: [compare.{label}]"
    if not _LABEL.fullmatch(label):
        raise UserError(f"{place}: a label is of letters, digits, '.', '_' and '-'; rename it.")
    if not isinstance(changes, dict):
        raise UserError(f"{source}: compare.{label} is no table; write [compare.{label}].")
    for table, values in changes.items():
        if table not in OWN:
            raise UserError(
                f"{place} changes {table!r}, which is the same for every method of a comparison; "
                f"keep to {', '.join(OWN)}."
            )
        if not isinstance(values, dict):
            raise UserError(f"{place}: {table} is no table; write {table}.KEY = VALUE.")


def merged(tables: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables with others laid over them."""
    result = dict(tables)
    for key, value in changes.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = merged(below, value)
        result[key] = value
    return result


def changed(recipe: Recipe, table: str, **values: Any) -> Recipe:
    """The recipe with other values in one of its tables."""
    return recipe.model_copy(update={table: getattr(recipe, table).model_copy(update=values)})
