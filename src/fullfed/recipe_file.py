"""Reading a recipe from its file or tables: TOML, environment variables, and overrides."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fullfed.config import SKETCH_RULE, Recipe, parse_recipe
from fullfed.errors import UserError

# What may be handed over where a recipe is asked for: itself, its tables, or its file.
RecipeSource = Recipe | Mapping[str, Any] | str | Path


def load_recipe(recipe: RecipeSource, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file or in nested tables, with ``key=value`` overrides applied.

    Overriding ``method.name`` leaves the options and the codec of the recipe's own method behind,
    and so do ``codec.name`` and ``aggregation.name`` with options. ``key=`` leaves a key of the
    file out. The tables under ``compare`` are for ``fullfed compare`` alone.

    ``$NAME`` and ``${NAME}`` in the file's and the overrides' strings stand for environment
    variables; relative paths are relative to the folder the command runs in.

    Args:
        recipe: the path of a TOML file; the same as a nested dict; or a Recipe, to change it.
        overrides: texts such as "federation.rounds=3", as after ``--set``.

    Raises:
        UserError: the file is missing or not TOML, a key is unknown, a value is out of range.

    Examples:
        >>> recipe = fullfed.load_recipe("first.toml", ["federation.rounds=2"])
        >>> recipe.federation.rounds
        2
    """
    if isinstance(recipe, Recipe) and not overrides:
        return recipe
    tables = load_tables(recipe, overrides)
    tables.pop("compare", None)
    return parse_recipe(expand_variables(tables), source_of(recipe))


def load_tables(recipe: RecipeSource, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe's tables, overrides applied, neither expanded nor validated.

    Raises:
        UserError: the file is missing or not TOML, or an override does not fit it.
    """
    tables = _tables(recipe)
    for override in overrides:
        key, _, name = override.partition("=")
        if key.strip() == "method.name":
            change_method(tables, str(_toml_value(name.strip())))
    for override in overrides:
        key, _, name = override.partition("=")
        table = key.strip().removesuffix(".name")
        if table in ("codec", "aggregation") and key.strip() != table:
            rename(tables, table, str(_toml_value(name.strip())))
    for override in overrides:
        _apply_override(tables, override)
    return tables


def source_of(recipe: RecipeSource) -> str:
    """What errors call the recipe: its file, if it has one."""
    return str(recipe) if isinstance(recipe, str | Path) else "the recipe"


def title_of(recipe: RecipeSource) -> str:
    """What a folder of the recipe's is called: as its file, or else as its method."""
    if isinstance(recipe, str | Path):
        return Path(recipe).stem
    if isinstance(recipe, Recipe):
        return recipe.method.name
    method = recipe.get("method")
    return str(method.get("name", "run")) if isinstance(method, Mapping) else "run"


def _tables(recipe: RecipeSource) -> dict[str, Any]:
    if isinstance(recipe, Recipe):
        return recipe.model_dump(mode="json", exclude_unset=True)
    if isinstance(recipe, Mapping):
        tables: dict[str, Any] = _as_in_toml(recipe)
        return tables
    if not isinstance(recipe, str | Path):
        raise UserError(
            f"The recipe is {type(recipe).__name__}; give a Recipe, a dict of tables, or the path "
            "of a TOML file."
        )
    try:
        return tomllib.loads(Path(recipe).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{recipe}: the recipe cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{recipe}: this is not valid TOML ({error}).") from error


def _as_in_toml(value: Any) -> Any:
    """A copy of nested tables, in which paths are texts."""
    if isinstance(value, Mapping):
        return {str(key): _as_in_toml(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_in_toml(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def rename(tables: dict[str, Any], table: str, name: str) -> None:
    """Leave the options of another method, codec or rule behind: they mean nothing to this one.

    With a codec goes the rule that is only there because of it.
    """
    if tables.get(table, {}).get("name") != name:
        tables[table] = {"name": name}
        if table == "codec" and tables.get("aggregation") == SKETCH_RULE:
            del tables["aggregation"]


def change_method(tables: dict[str, Any], name: str) -> None:
    """Leave another method's options and its codec behind, and the rule that is only there because
    of that: the new one has its own."""
    if tables.get("method", {}).get("name") != name:
        tables.pop("codec", None)
        if tables.get("aggregation") == SKETCH_RULE:
            del tables["aggregation"]
    rename(tables, "method", name)


def _apply_override(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: write it as key=value, such as federation.rounds=3.")
    *parents, last = key.strip().split(".")
    table = tables
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {override}: {parent!r} is not a table of the recipe.")
    if text.strip():
        table[last] = _toml_value(text.strip())
    else:
        table.pop(last, None)


def _toml_value(text: str) -> Any:
    """The text as a TOML value; what is not one is a plain string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def expand_variables(value: Any) -> Any:
    """The value with every string in it expanded.

    Raises:
        UserError: an environment variable is not set.
    """
    if isinstance(value, dict):
        return {key: expand_variables(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expand_variables(item) for item in value]
    return _expanded(value) if isinstance(value, str) else value


def _expanded(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise UserError(f"{text}: the environment variable {name} is not set; set it.")
        return os.environ[name]

    return re.sub(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", replace, text)
