"""The schema takes recipes that run and refuses mistakes; the page of keys has all of them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

import fullfed
from fullfed.cli import app
from fullfed.config import LocalTable, Recipe
from fullfed.methods.catalogue import CODECS
from fullfed.methods.codecs.dense import Dense
from fullfed.quickstart import quickstart_recipe
from fullfed.schema.meanings import Meaning, meanings
from fullfed.schema.recipe_schema import NAMED, options_schema, recipe_schema, tables_of
from fullfed.schema.reference import keys, reference_page

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = recipe_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path, validator: Draft202012Validator) -> None:
    validator.validate(tomllib.loads(path.read_text()))


def test_so_is_one_with_every_default_spelled_out(validator: Draft202012Validator) -> None:
    validator.validate(quickstart_recipe("ferret").model_dump(mode="json", exclude_none=True))


def changed(table: str, key: str, value: Any) -> dict[str, Any]:
    tables = tomllib.loads((ROOT / "recipes" / "smollm2-gsm8k.toml").read_text())
    tables.setdefault(table, {})[key] = value
    return tables


MISTAKES = [
    ("local", "learning_rat", 0.1),  # a misspelt key
    ("local", "learning_rate", "2e-5"),  # a text for a number
    ("local", "learning_rate", 0),
    ("local", "optimizer_state", "keep"),  # no such choice
    ("federation", "rounds", 2.5),
    ("model", "dtype", "fp16"),
    ("method", "name", "ferrets"),
    ("method", "seed", "client"),  # an option of no method
    ("method", "rank", 8),  # an option of another method
    ("codec", "name", "zip"),
    ("aggregation", "name", "majority"),
    ("trainer", "name", "peft"),
    ("evaluation", "metrics", ["bleu"]),
    ("memory", "cache_inputs", -1),
    ("memory", "cache_inputs", [256]),
    ("rounds", "rounds", 1),  # a table that there is not
    ("data", "columns", {"question": "q"}),
    ("compare", "fedavg", {"federation": {"rounds": 3}}),
]


@pytest.mark.parametrize(("table", "key", "value"), MISTAKES, ids=lambda value: str(value))
def test_mistakes_are_not(
    table: str, key: str, value: Any, validator: Draft202012Validator
) -> None:
    assert not validator.is_valid(changed(table, key, value))


def test_what_is_missing_shows(validator: Draft202012Validator) -> None:
    tables = changed("method", "name", "ferret")
    del tables["model"]["path"]
    (error,) = validator.iter_errors(tables)
    assert "'path' is a required property" in error.message


@pytest.mark.parametrize("value", [0, "256MiB"])
def test_bytes_are_numbers_or_texts(value: Any, validator: Draft202012Validator) -> None:
    validator.validate(changed("memory", "cache_inputs", value))


def described() -> Iterator[tuple[str, type, Callable[[], dict[str, Any]]]]:
    for table in dict.fromkeys(tables_of(Recipe)):
        yield table.__name__, table, table.model_json_schema
    for kind, entries in NAMED.items():
        for name, entry in entries.items():
            yield f"{kind} {name}", entry.options, lambda o=entry.options: options_schema(o)


@pytest.mark.parametrize("one", list(described()), ids=lambda one: one[0])
def test_every_key_has_a_meaning_and_every_meaning_a_key(
    one: tuple[str, type, Callable[[], dict[str, Any]]],
) -> None:
    _, table, schema = one
    assert set(meanings(table)) == set(schema().get("properties", {}))


def test_meanings_are_read_from_docstrings() -> None:
    class Base:
        """
        Attributes:
            first: a word.
        """

    class Both(Base):
        """Of two.

        Attributes:
            second (tokens): goes on
                in another line: with ``code``.

        Example:
            third: is not one.
        """

    assert meanings(Both) == {
        "first": Meaning("a word.", ""),
        "second": Meaning("goes on in another line: with `code`.", "tokens"),
    }


def test_the_page_is_what_the_docstrings_make() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text() == reference_page(), (
        "run python scripts/write_reference.py"
    )


def test_a_row_has_type_default_and_unit() -> None:
    of_data = {key.name: key for key in keys(recipe_schema()["$defs"]["LocalTable"], LocalTable)}
    assert of_data["batch_size"][1:4] == ("whole number, above 0", "4", "samples")
    assert of_data["clip_by"][1:3] == ('"model" or "tensor"', '"model"')
    assert of_data["momentum"][1:3] == ("number, at least 0, below 1", "")


def test_what_is_registered_is_in_the_schema() -> None:
    options = make_dataclass("Zip", [("level", int)])
    fullfed.register_codec("zip", fullfed.CodecEntry("zipped", options, lambda seed, o: Dense()))
    try:
        validator = Draft202012Validator(recipe_schema())
    finally:
        del CODECS["zip"]
    assert validator.is_valid(
        {**changed("codec", "name", "zip"), "codec": {"name": "zip", "level": 3}}
    )
    assert not validator.is_valid(changed("codec", "name", "zip")), "the level is missing"


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_commands_print_schema_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert json.loads(invoke("schema")) == recipe_schema()
    text = invoke("methods", "topk")
    assert "codec topk: the largest numbers" in text
    assert "of each value: 1 to 8" in text
    with pytest.raises(fullfed.UserError, match="ferrets: there is nothing of this name"):
        CliRunner().invoke(app, ["methods", "ferrets"], catch_exceptions=False)
