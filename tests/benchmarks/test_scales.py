"""benchmarks/scales.py: factors of a known curvature, and text that a model draws by itself."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from fullfed.sketch import Stream, perturb_

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "scales.py"))
own_text, scales_of = BENCHMARK["own_text"], BENCHMARK["scales_of"]
squared_gradients = BENCHMARK["squared_gradients"]


def factors(curvature: list[tuple[torch.Tensor, torch.Tensor]], **which: bool) -> list[list[float]]:
    found = [torch.zeros(len(rows), len(columns)) for rows, columns in curvature]
    perturb_(found, Stream(0, 1), 1.0, scales=scales_of(curvature, **which))
    return [(tensor.abs() / tensor.abs().flatten()[0]).flatten().tolist() for tensor in found]


def test_a_factor_is_one_over_the_fourth_root_of_the_curvature() -> None:
    rows, columns = torch.tensor([1.0, 16.0]).double(), torch.tensor([4.0, 13.0]).double()
    [found] = factors([(rows, columns)])
    assert found == pytest.approx([1, (4 / 13) ** 0.25, 0.5, 0.5 * (4 / 13) ** 0.25], rel=0.1)
    assert factors([(rows, columns)], columns=False) == [
        [1.0, 1.0, *[pytest.approx(0.5, rel=0.05)] * 2]
    ]
    assert factors([(rows, columns)], rows=False, columns=False) == [[1.0] * 4]


def test_what_a_model_writes_follows_from_the_seed_and_has_a_gradient_everywhere(
    tiny_llama: LlamaForCausalLM,
) -> None:
    tiny_llama.config.max_position_embeddings = 128
    text = own_text(tiny_llama, 3)
    assert text.shape == (8, 128)
    assert torch.equal(text, own_text(tiny_llama, 3))
    assert not torch.equal(text, own_text(tiny_llama, 4))
    assert len(text.unique()) > 20
    found = squared_gradients(tiny_llama, (tiny_llama(t[None], labels=t[None]).loss for t in text))
    by_name = dict(zip(dict(tiny_llama.named_parameters()), found, strict=True))
    rows, columns = by_name["model.layers.0.mlp.up_proj.weight"]
    assert (len(rows), len(columns)) == (32, 16)
    assert rows.mean() == pytest.approx(columns.mean()), "both are means of the same squares"
    assert rows.min() > 0
