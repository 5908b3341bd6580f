"""The JSON schema (draft 2020-12) of a recipe, with the options of all that it can name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter

from fullfed.config import Recipe
from fullfed.methods.catalogue import AGGREGATIONS, CODECS, METHODS, TRAINERS
from fullfed.methods.registration import load_plugins
from fullfed.schema.meanings import meanings

NAMED: Mapping[str, Mapping[str, Any]] = {
    "method": METHODS,
    "codec": CODECS,
    "aggregation": AGGREGATIONS,
    "trainer": TRAINERS,
}
"""The tables whose other keys depend on their ``name``, and what the name can be."""

_OVERLAID = ("local", "memory", "method", "codec", "aggregation")  # by a table under compare

Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """The schema of recipe.toml; what installed packages register is in it."""
    load_plugins()
    schema = Recipe.model_json_schema()
    for table in tables_of(Recipe):
        definition = schema if table is Recipe else schema["$defs"].get(table.__name__)
        if definition is not None:
            _describe(definition, table)
    for key, entries in NAMED.items():
        options = [_named(name, entry.options) for name, entry in entries.items()]
        described = {"description": meanings(Recipe)[key].text}
        schema["properties"][key] = {"type": "object", **described, "oneOf": options}
    del schema["$defs"]["NamedTable"]
    label = {"type": "object", "properties": {key: {"type": "object"} for key in _OVERLAID}}
    schema["properties"]["compare"] = {
        "type": "object",
        "description": "What `fullfed compare` changes for one method, by label.",
        "additionalProperties": {**label, "additionalProperties": False},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "A recipe of fullfed",
    }


def options_schema(options: type) -> Schema:
    """The schema of a method's, codec's, rule's or trainer's options, without the name."""
    schema = TypeAdapter(options).json_schema()
    _describe(schema, options)
    return {**schema, "additionalProperties": False}


def tables_of(table: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A table and all tables in it; one that is in several comes several times."""
    yield table
    for field in table.model_fields.values():
        for inner in _models(field.annotation):
            yield from tables_of(inner)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables that a key can be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _named(name: str, options: type) -> Schema:
    schema = options_schema(options)
    named = {"name": {"const": name}, **schema.get("properties", {})}
    required = ["name", *schema.get("required", ())]
    return {**schema, "title": name, "properties": named, "required": required}


def _describe(schema: Schema, table: type) -> None:
    """Put what a class's docstring says of its attributes to them, and leave out what pydantic
    makes of names."""
    schema.pop("title", None)
    schema.pop("description", None)
    found = meanings(table)
    for name, key in schema.get("properties", {}).items():
        key.pop("title", None)
        if name in found:
            text, unit = found[name]
            key["description"] = f"{text} [{unit}]" if unit else text
