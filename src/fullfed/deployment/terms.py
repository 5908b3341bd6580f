"""What a node must know of a run: the recipe without its data, and which base model it begins with.

The server cannot name files on a node: which model folder and which data are used is the node's
own configuration, and whether the model is the right one shows in its hash.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fullfed.config import Recipe, parse_recipe
from fullfed.errors import UserError

_TABLES = ("federation", "local", "memory", "method")


@dataclass(frozen=True)
class Terms:
    """
    Attributes:
        recipe: a node's: with the model and the data that the node itself names.
        clients: how many there are in the federation.
        base_hash: of the base model.
    """

    recipe: Recipe
    clients: int
    base_hash: str


def encode_terms(recipe: Recipe, clients: int, base_hash: str) -> bytes:
    """The terms of a run as the server sends them."""
    tables = recipe.model_dump(mode="json", exclude_none=True)
    terms = {
        "clients": clients,
        "base_hash": base_hash,
        "dtype": recipe.model.dtype,
        "rounding": recipe.model.rounding,
        "template": recipe.data.template,
        "max_length": recipe.data.max_length,
        "tables": {name: tables[name] for name in _TABLES},
    }
    return json.dumps(terms, sort_keys=True).encode()


def decode_terms(data: bytes, model: str, device: str, train: str) -> Terms:
    """The terms of a run as a node takes them.

    Args:
        data: what a server sent.
        model, device, train: the node's own.

    Raises:
        UserError: what the server sent are not terms.
    """
    try:
        sent = json.loads(data)
        tables: dict[str, Any] = {name: sent["tables"][name] for name in _TABLES}
        tables["model"] = {"path": model, "device": device}
        tables["model"] |= {name: sent[name] for name in ("dtype", "rounding")}
        tables["data"] = {"train": train, "template": sent["template"]}
        if sent["max_length"] is not None:
            tables["data"]["max_length"] = sent["max_length"]
        clients, base_hash = int(sent["clients"]), str(sent["base_hash"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError("the server's terms are malformed; use one version everywhere.") from error
    return Terms(parse_recipe(tables, "the server's terms"), clients, base_hash)
