"""What a visit of each class holds is what the formula says: counted as it trains, and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import fullfed
from fullfed.federation.messages import number
from fullfed.methods.suffixes import SuffixComposition
from fullfed.runs.assembly import build_method, choose
from fullfed.runs.graph_memory import _Live
from fullfed.runs.visit_memory import visit_bytes
from methods.test_compositions import recipe
from methods.tiny import samples
from runs.small import tables


def llama() -> LlamaForCausalLM:
    """Eight layers that are nearly all of the model."""
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def method() -> SuffixComposition:
    shares = dict.fromkeys(("strong", "moderate", "weak"), 1 / 3)
    local = {"optimizer": "adamw", "learning_rate": 1e-3, "steps": 2, "batch_size": 1}
    told = recipe(3, method={"name": "embracing-fl", "clients": shares}, local=local)
    made = build_method(told, choose(told), llama(), 3)
    assert isinstance(made, SuffixComposition)
    return made


def test_a_visit_holds_what_the_formula_says(method: SuffixComposition) -> None:
    """As storages come and go; activations of one short sample are few."""
    reckoned, counted = dict[str, int](), dict[str, int]()
    for name, block in method.classes:
        model = llama()
        plan = next(p for p in method.plans(0, None) if number(p, "block") == block)
        reckoned[name] = visit_bytes(model, method, method.blocks[block], "master")
        live = _Live([])
        for p in model.parameters():
            live._count(p.untyped_storage())
        with live:
            method.train(model, plan, samples(2), None)
        counted[name] = live.peak
    for name, found in counted.items():
        # Above it are activations and, for a moment, what the optimizer's step works with.
        assert reckoned[name] <= 1.001 * found, (reckoned, counted)
        assert found <= 1.25 * reckoned[name], (reckoned, counted)
    assert counted["weak"] < counted["moderate"] < counted["strong"]


def test_the_formula_by_hand(method: SuffixComposition) -> None:
    model = llama()
    d, layer = (sum(p.numel() for p in m.parameters()) for m in (model, model.model.layers[0]))
    embedding, small = model.model.embed_tokens.weight.numel(), 8 * len(list(model.parameters()))

    def of(shapes: Any) -> int:
        return visit_bytes(model, method, shapes, "master")

    strong, moderate, weak = method.blocks
    for own, layers in ((moderate, 3), (weak, 1)):
        d_s = layers * layer + 64 + 64 * 16  # final norm, head
        assert sum(shape.numel() for shape in own.values()) == d_s
        frozen = (8 - layers) * layer + embedding
        # The rest of the model, before, gradient and two moments; or all at rest, and before.
        wanted = max(4 * (d - frozen) + 16 * d_s, 4 * d + 4 * d_s)
        assert of(own) == pytest.approx(wanted, abs=small)
    assert of(strong) == pytest.approx(20 * d, abs=small)


def test_an_estimate_tells_each_class(ingredients: Path) -> None:
    told = tables(ingredients) | {"method": {"name": "embracing-fl"}}
    cost = fullfed.estimate(told)
    assert list(cost.class_bytes) == ["strong", "moderate", "weak"]
    assert cost.memory_bytes == cost.class_bytes["strong"] > cost.class_bytes["weak"]
    assert "\nmemory by class: strong " in str(cost)
    assert "by class" not in str(fullfed.estimate(tables(ingredients)))
