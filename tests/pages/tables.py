"""Holds TOML of pages against what reads it: a recipe, or a file of a federation."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fullfed.comparisons.plan import contestants
from fullfed.config import Recipe
from fullfed.deployment.folders import FederationFile, NodeFile
from fullfed.recipe_file import load_recipe
from fullfed.runs.assembly import choose

# What a page's tables stand in where they are no whole recipe.
BASE: dict[str, Any] = {
    "model": {"path": "builtin"},
    "data": {"train": "builtin", "partition": "task"},
    "federation": {"rounds": 2, "clients_per_round": 1},
    "method": {"name": "fedavg"},
}
NAMED = {"method", "codec", "aggregation", "trainer"}
FILES: dict[type[NodeFile | FederationFile], dict[str, Any]] = {
    NodeFile: {"server": "fed.example.org:8443", "name": "north"},
    FederationFile: {
        "address": "fed.example.org",
        "port": 8443,
        "listen": "0.0.0.0",
        "partners": ["north", "south"],
    },
}


def check_toml(text: str) -> None:
    """
    Raises:
        ValueError, UserError: nothing reads it, or it would be refused.
    """
    tables = tomllib.loads(text)
    if tables.keys() == {"project"}:  # of a package, whose entry points are its own
        return
    if tables.keys() <= {*Recipe.model_fields, "compare"} and not isinstance(
        tables.get("trainer"), str
    ):
        _check_recipe(tables)
        return
    for file, given in FILES.items():
        if tables.keys() <= file.model_fields.keys():
            with suppress(ValueError):
                file.model_validate({**given, **tables})
                return
    raise ValueError(f"neither a recipe nor a file of a federation may say {tables}")


def _check_recipe(tables: Mapping[str, Any]) -> None:
    whole = copy.deepcopy(BASE)
    for name, table in tables.items():
        own = name in NAMED or {"train", "sources"} & set(table)
        whole[name] = table if own else {**whole.get(name, {}), **table}
    if "compare" in whole:
        contestants(whole, [*whole["compare"]], "the page")
    choose(load_recipe(whole))
