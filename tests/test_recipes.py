"""recipes/: each of them, and every label of `fullfed compare` in them, can be carried out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fullfed.comparisons.plan import contestants
from fullfed.config_values import parse_bytes
from fullfed.methods.codecs import sketch, topk
from fullfed.methods.composition import Composition
from fullfed.recipe_file import load_tables
from fullfed.runs.assembly import build_method, choose

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
REAL = [path for path in RECIPES if path.stem.startswith("smollm2-")]
TENTHS = {f"ferret-1e{power}": power for power in range(2, 7)} | {"topk": 3}


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULLFED_SHARED", "/shared")


def labels_of(tables: dict[str, Any]) -> list[str]:
    return ["fedavg", *(label for label in tables["compare"] if label != "fedavg")]


def smollm2() -> LlamaForCausalLM:
    """A model of SmolLM2-135M's shape, without numbers."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_label_is_a_recipe(path: Path) -> None:
    tables = load_tables(path)
    labels = labels_of(tables)
    assert [c.label for c in contestants(tables, labels, str(path))] == labels


def test_the_recipes_of_one_model_differ_in_their_data_only() -> None:
    first, *others = [load_tables(path) for path in REAL]
    assert len(others) == 3
    for other in others:
        for table in ("model", "federation", "local", "method", "compare"):
            assert other[table] == first[table]


def test_every_label_fits_the_model_and_sends_as_little_as_it_says() -> None:
    tables = load_tables(REAL[0])
    built: dict[str, Composition] = {}
    for contestant in contestants(tables, labels_of(tables), str(REAL[0])):
        method = build_method(contestant.recipe, choose(contestant.recipe), smollm2(), clients=9)
        (plan, *others) = method.plans(0, None)
        assert len(others) == 2
        built[contestant.label] = method
        if contestant.label in TENTHS:
            recipe, power = contestant.recipe, TENTHS[contestant.label]
            options = recipe.codec.options if recipe.codec else recipe.method.options
            upload = parse_bytes(options["upload"])
            assert upload == pytest.approx(4 * 134_515_008 / 10**power, rel=0.01)
            largest = isinstance(method.codec, topk.TopK)
            scale = 4  # of a sketch; one of them is counted in the header
            room = upload - (topk.REPORT_HEADER if largest else sketch.REPORT_HEADER - scale)
            assert 0 < method.codec.report_bytes(plan, method.setting.shapes) <= room
    (plan, *_) = built["fedavg"].plans(0, None)
    dense = built["fedavg"].codec.report_bytes(plan, built["fedavg"].setting.shapes)
    assert dense == 538_060_032
    (plan, *_) = built["ferret-published"].plans(0, None)
    split = plan.values["allocation"]
    assert isinstance(split, list)
    assert (len(split), sum(split)) == (152, 3040)  # 20 for each block
