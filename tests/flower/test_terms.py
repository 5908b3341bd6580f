"""What a node is told of a recipe is all of it that the node does not name itself."""

from __future__ import annotations

import pytest

from fullfed.config import parse_recipe
from fullfed.deployment.terms import decode_terms, encode_terms
from fullfed.errors import UserError


def test_a_node_has_the_recipe_but_for_model_and_data_of_its_own() -> None:
    recipe = parse_recipe(
        {
            "model": {
                "path": "here", "device": "cpu", "dtype": "bfloat16", "rounding": "stochastic"
            },
            "data": {"train": "ours.jsonl", "template": "alpaca", "max_length": 99},
            "federation": {"rounds": 3, "clients_per_round": 2, "seed": 8},
            "local": {"optimizer": "adamw", "learning_rate": 0.5, "steps": 4, "clip_by": "tensor"},
            "memory": {"optimizer_in_backward": True, "frozen": "int4", "cache_inputs": "1MiB"},
            "method": {"name": "fedcybgd", "surrogate": 0.5},
        },
        "a test",
    )  # fmt: skip
    terms = decode_terms(encode_terms(recipe, 7, "hash"), "there", "auto", "mine.jsonl")
    assert (terms.clients, terms.base_hash) == (7, "hash")
    model = recipe.model.model_copy(update={"path": "there", "device": "auto"})
    data = recipe.data.model_copy(update={"train": "mine.jsonl"})
    assert terms.recipe == recipe.model_copy(update={"model": model, "data": data})


def test_what_are_no_terms_is_an_error() -> None:
    with pytest.raises(UserError, match="the server's terms are malformed"):
        decode_terms(b"{}", "there", "auto", "mine.jsonl")
