"""A recipe is the same from a file, from nested dicts, and from a recipe."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from fullfed.config import Recipe
from fullfed.errors import UserError
from fullfed.recipe_file import load_recipe, load_tables, title_of

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "recipes").glob("*.toml"))
TABLES: dict[str, Any] = {
    "model": {"path": Path("models/mine")},
    "data": {"train": "$PLACE/train.jsonl", "ignore": ("id", "url")},
    "federation": {"rounds": 2, "clients_per_round": 3},
    "method": {"name": "fedavg"},
    "codec": {"name": "topk", "upload": "4kb"},
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_three_forms_of_a_recipe_are_equal(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULLFED_SHARED", "/shared")
    recipe = load_recipe(str(file))
    assert load_recipe(tomllib.loads(file.read_text())) == recipe
    assert load_recipe(recipe) is recipe
    changed = load_recipe(recipe, ["federation.rounds=3"])
    assert changed == load_recipe(file, ["federation.rounds=3"])


def test_tables_are_read_as_toml_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/here")
    recipe = load_recipe(TABLES, ["method.name=ferret", "method.upload=4kb"])
    assert recipe.model.path == "models/mine"
    assert recipe.data.train == "/here/train.jsonl"
    assert recipe.data.ignore == ("id", "url")
    assert recipe.codec is None, "that was the other method's"
    assert TABLES["codec"] == {"name": "topk", "upload": "4kb"}, "a copy was changed"


def test_a_folder_is_called_as_the_file_or_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/here")
    assert title_of("recipes/dolly.toml") == title_of(Path("dolly.toml")) == "dolly"
    assert title_of(TABLES) == title_of(load_recipe(TABLES)) == "fedavg"


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({**TABLES, "lokal": {}}, "the recipe: there is no key 'lokal'"),
        ("no.toml", "no.toml: the recipe cannot be read"),
        (None, "The recipe is NoneType; give a Recipe, a dict of tables"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    recipe: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "/here")
    with pytest.raises(UserError) as caught:
        load_recipe(recipe)
    assert str(caught.value).startswith(expected)


def test_a_recipe_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/here")
    recipe = load_recipe(TABLES)
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.federation.rounds = 3


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("method.name=fedit", None),
        ("codec.name=dense", None),
        ("method.name=ferret", {"name": "clipped-mean", "weights": "samples"}),
        ("federation.rounds=9", {"name": "clipped-mean", "weights": "samples"}),
    ],
)
def test_a_rule_that_is_only_there_because_of_a_sketch_goes_with_it(
    change: str, rule: dict[str, str] | None
) -> None:
    """As in the recipe that a run of Ferret writes, where its default is spelled out."""
    tables: dict[str, Any] = {
        "model": {"path": "builtin"},
        "data": {"train": "builtin"},
        "federation": {"rounds": 1, "clients_per_round": 3},
        "method": {"name": "ferret", "coordinates": 9},
        "aggregation": {"name": "clipped-mean", "weights": "samples"},
    }
    assert load_tables(tables, [change]).get("aggregation") == rule
    own = {**tables, "aggregation": {"name": "trimmed-mean", "trim": 0.2}}
    assert load_tables(own, [change])["aggregation"] == own["aggregation"], "it was asked for"
