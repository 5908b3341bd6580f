"""Every key of a recipe in tables: the page docs/recipe.md, and what ``fullfed methods`` shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel

from fullfed.config import NamedTable, Recipe
from fullfed.config_data import ColumnsTable, SourceTable
from fullfed.errors import UserError
from fullfed.methods.registration import load_plugins
from fullfed.schema.meanings import meanings, summary
from fullfed.schema.recipe_schema import NAMED, Schema, options_schema, recipe_schema, tables_of

_KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "table",
    "null": "",
}
_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}
COLUMNS = ("key", "type", "default", "unit", "meaning")
"""What a table of keys has; ``Key`` has the same."""

_OPENING = """# Every key of a recipe

Written by `python scripts/write_reference.py` from the docstrings of the code: correct it there.
[guide.md](guide.md) explains recipes. `fullfed schema` prints the same as a JSON schema, with which
editors complete them.
"""


class Key(NamedTuple):
    """A key of a recipe, as texts."""

    name: str
    kind: str
    default: str
    unit: str
    meaning: str


def keys(schema: Schema, table: type) -> list[Key]:
    """The keys of a table, or of a dataclass of options.

    Args:
        schema: of the table.
    """
    found, required = meanings(table), schema.get("required", ())
    return [
        Key(
            name,
            kind(own),
            "required" if name in required else _default(own),
            found[name].unit if name in found else "",
            found[name].text if name in found else "",
        )
        for name, own in schema.get("properties", {}).items()
    ]


def kind(schema: Schema) -> str:
    """What a value can be, in words."""
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(words for one in schema["anyOf"] if (words := kind(one)))
    if "$ref" in schema:
        return "table"
    if schema.get("type") == "array":
        items = kind(schema["items"])
        return f"list of {items}" if "enum" in schema["items"] else f"list of {items}s"
    if schema.get("format") == "date":
        return "date"
    types = schema.get("type", "string")
    words = " or ".join(_KINDS[one] for one in ([types] if isinstance(types, str) else types))
    bounds = [f"{said} {schema[key]}" for key, said in _BOUNDS.items() if key in schema]
    return ", ".join([words, *bounds])


def _default(schema: Schema) -> str:
    default = schema.get("default")
    return "" if default is None or isinstance(default, dict) else json.dumps(default)


def reference_page() -> str:
    """docs/recipe.md."""
    schema = recipe_schema()
    parts = [_OPENING]
    for name, model in _tables():
        own = schema["$defs"][model.__name__]
        parts.append(f"## {name}\n\n{summary(model)}\n\n{_markdown(keys(own, model))}")
    for name, entries in NAMED.items():
        parts.append(f"## [{name}]\n\n`name`: {meanings(Recipe)[name].text}\n")
        for label, entry in entries.items():
            options = keys(options_schema(entry.options), entry.options)
            table = _markdown(options) if options else "No options.\n"
            parts.append(f"### {name} {label}\n\n{described(entry)}\n\n{table}")
    return "\n".join(parts)


def described(entry: Any) -> str:
    """A line on a method, codec, rule or trainer of the catalogue."""
    if hasattr(entry, "paper"):
        return f"{entry.title} ({entry.paper}): {entry.composition}."
    return f"{entry.description}."


def entries_called(name: str) -> dict[str, Any]:
    """The methods, codecs, rules and trainers of a name, by the table that names them.

    Raises:
        UserError: there is none.
    """
    load_plugins()
    found = {table: entries[name] for table, entries in NAMED.items() if name in entries}
    if not found:
        every = [one for entries in NAMED.values() for one in entries]
        raise UserError(f"{name}: there is nothing of this name; choose among {', '.join(every)}.")
    return found


def _tables() -> Iterator[tuple[str, type[BaseModel]]]:
    """The heading of each table that has keys of its own, and the table."""
    names: dict[Any, str] = {}
    for name, field in Recipe.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)  # one of them None, perhaps
        names |= dict.fromkeys(kinds, f"[{name}]")
    names |= {ColumnsTable: "[data.columns]", SourceTable: "[[data.sources]]"}
    for table in dict.fromkeys(tables_of(Recipe)):
        if table not in (Recipe, NamedTable):
            yield names[table], table


def _markdown(rows: list[Key]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        default = f"`{row.default}`" if row.default and row.default != "required" else row.default
        cells = (f"`{row.name}`", row.kind, default, row.unit, row.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
