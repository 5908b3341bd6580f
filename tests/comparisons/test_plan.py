"""From a recipe with tables under compare to one recipe a label."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fullfed.comparisons import plan
from fullfed.comparisons.plan import contestants, merged
from fullfed.errors import UserError
from fullfed.methods.catalogue import METHODS
from fullfed.recipe_file import load_recipe
from fullfed.runs.binding import flat

RECIPE = """
[model]
path = "builtin"
[data]
train = "builtin"
[federation]
rounds = 4
clients_per_round = 2
[local]
learning_rate = 0.3
steps = 5
[method]
name = "ferret"
coordinates = 64
seeds = "shared"
"""


def tables(more: str = "") -> dict[str, Any]:
    return tomllib.loads(RECIPE + more)


def test_a_label_that_is_a_method_needs_no_table() -> None:
    fedavg, ferret = contestants(tables(), ["fedavg", "ferret"], "the test")
    assert (fedavg.label, fedavg.recipe.method.name) == ("fedavg", "fedavg")
    assert fedavg.recipe.method.options.keys() == {"server_step"}
    options = {"precision": "float32", "error_feedback": False}
    assert fedavg.recipe.codec is not None
    assert fedavg.recipe.codec.options == options
    assert ferret.recipe.codec is None, "Ferret's codec has its options in the method's table"
    assert ferret.recipe.method.options["coordinates"] == 64
    assert ferret.recipe.method.options["seeds"] == "shared"
    assert (fedavg.changes, ferret.changes) == ({}, {})


def test_a_table_is_laid_over_the_recipe_key_by_key() -> None:
    more = "[compare.ferret]\nmethod.coordinates = 8\nlocal.steps = 2\n"
    (ferret,) = contestants(tables(more), ["ferret"], "the test")
    assert ferret.recipe.method.options["coordinates"] == 8
    assert ferret.recipe.method.options["seeds"] == "shared", "its own method keeps its options"
    assert (ferret.recipe.local.steps, ferret.recipe.local.learning_rate) == (2, 0.3)
    assert ferret.changes == {"method.coordinates": 8, "local.steps": 2}


def test_a_variant_names_its_method_and_leaves_the_recipes_method_behind() -> None:
    more = '[compare.half]\nmethod.name = "fedavg"\n'
    more += 'codec.name = "dense"\ncodec.precision = "bfloat16"\n'
    (half,) = contestants(tables(more), ["half"], "the test")
    assert half.recipe.method.name == "fedavg"
    assert half.recipe.codec.options["precision"] == "bfloat16"  # type: ignore[union-attr]


def test_all_but_training_and_method_is_the_same() -> None:
    more = '[compare.a]\nmethod.name = "fedavg"\nlocal.batch_size = 1\nlocal.optimizer = "adamw"\n'
    one, other = (c.recipe for c in contestants(tables(more), ["a", "ferret"], "the test"))
    for table in ("model", "data", "federation", "evaluation", "simulation"):
        assert getattr(one, table) == getattr(other, table)


def test_the_search_starts_at_the_tables_rate_or_the_methods_own_or_the_recipes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {**METHODS, "fedavg": replace(METHODS["fedavg"], learning_rate=7.0)}
    monkeypatch.setattr(plan, "METHODS", known)
    more = '[compare.b]\nmethod.name = "fedavg"\nlocal.learning_rate = 0.01\n'
    found = contestants(tables(more), ["fedavg", "b", "ferret"], "the test")
    assert [c.recipe.local.learning_rate for c in found] == [7.0, 0.01, 0.3]


def test_variables_are_expanded_in_a_table_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULLFED_TEST", "adamw")
    more = '[compare.ferret]\nlocal.optimizer = "$FULLFED_TEST"\n'
    (ferret,) = contestants(tables(more), ["ferret"], "the test")
    assert ferret.recipe.local.optimizer == "adamw"


def test_a_run_ignores_the_tables(tmp_path: Path) -> None:
    bare, with_tables = tmp_path / "bare.toml", tmp_path / "tables.toml"
    bare.write_text(RECIPE)
    with_tables.write_text(RECIPE + '[compare.a]\nlocal.steps = 1\nnonsense = "$NO_SUCH_NAME"\n')
    assert load_recipe(with_tables) == load_recipe(bare)


@pytest.mark.parametrize(
    ("labels", "more", "expected"),
    [
        ("fedavg,fedavg", "", "methods: fedavg is named twice; name each method once."),
        ("", "", "methods: no method is named; choose among fedavg, fedprox, fedbuff"),
        ("fedsgd", "", "methods: 'fedsgd' is neither a method nor a table"),
        ("x", "[compare.x]\nlocal.steps = 1", r"\[compare.x\] is to say which method it is"),
        ("x", "[compare.x]\nmethod.name = 'sgd'", r"\[compare.x\] is to say which method it is"),
        ("x", "[compare]\nx = 3", r"compare.x is no table; write \[compare.x\]"),
        ("x", "[[compare]]\nx = 3", r"compare is no table; write \[compare.LABEL\]"),
        ("fedavg", "[compare]\nfedavg.local = 3", "local is no table; write local.KEY = VALUE"),
        ("fedavg", "[compare.fedavg]\ndata.clients = 3", "changes 'data', which is the same for"),
        ("fedavg", "[compare.fedavg]\nlocal.lr = 3", "there is no key 'local.lr'"),
        ("fedavg", "[compare.fedavg]\nmethod.k = 3", "there is no key 'method.k'"),
        ("../x", '[compare."../x"]\nmethod.name = "ferret"', "a label is of letters, digits"),
    ],
)
def test_bad_labels_and_tables_are_named(labels: str, more: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        contestants(tables(more), [label for label in labels.split(",") if label], "recipe.toml")
    assert str(caught.value).endswith(".")


def test_nested_tables_are_merged_without_touching_either() -> None:
    below, above = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "d": {"e": 5}}
    before = tomli_w.dumps(below), tomli_w.dumps(above)
    assert merged(below, above) == {"a": {"b": 4, "c": 2}, "d": {"e": 5}}
    assert (tomli_w.dumps(below), tomli_w.dumps(above)) == before
    assert flat(merged(below, above)) == {"a.b": 4, "a.c": 2, "d.e": 5}
