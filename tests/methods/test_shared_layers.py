"""What layers share, as in MobiLlama, is one tensor everywhere: trained, sent, exported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fullfed.data.batches import collate
from fullfed.federation.messages import encode
from fullfed.quickstart import MODEL_PATH
from fullfed.runs import run
from fullfed.runs.export import export
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import replay, verify
from fullfed.training.layers import layer_names
from fullfed.training.prefix import Prefix
from methods.shared_layers import SharedLlama, shared_llama
from methods.test_compositions import built, recipe
from methods.tiny import same, samples, weights
from runs.small import ROUNDS, write_data
from runs.small import recipe as run_recipe
from runs.test_adapters import logits
from training.test_prefix import exact_loss

SKETCH = {"name": "sketch", "coordinates": 24}
TOGETHER = {"name": "fedcybgd", "clients_per_block": 3, "order": "permutation"}
CASES: dict[str, dict[str, Any]] = {
    "ferret": {"method": {"name": "ferret", "coordinates": 24}},
    "topk": {"method": {"name": "fedavg"}, "codec": {"name": "topk", "count": 9}},
    "blocks": {"method": TOGETHER},
    "sketch of blocks": {"method": {**TOGETHER, "name": "cyclic-ferret"}, "codec": SKETCH},
    "frozen in few bits": {"method": TOGETHER, "memory": {"frozen": "int8"}},
    "submodels": {"method": {**TOGETHER, "surrogate": 0.3}},
    "suffixes": {"method": {"name": "embracing-fl", "memory": {"w": 0.3}, "clients": {"w": 1.0}}},
    "sets": {"method": {"name": "blockllm", "sparsity": 0.5}},
    "adapters": {"method": {"name": "fedit", "rank": 2, "targets": ("q_proj", "gate_proj")}},
}


@pytest.mark.parametrize("case", CASES)
def test_two_rounds_leave_one_feed_forward_block(case: str) -> None:
    ours, twin = (built(shared_llama(), 3, recipe(3, **CASES[case])) for _ in range(2))
    before = weights(ours.model)
    for _ in range(2):
        result = ours.round()
        assert len(result.aggregated) == 3, result.refused
        twin.worker.deliver(encode(result.update))
    now = weights(ours.model)
    assert not same(now, before)
    assert same(now, weights(twin.model))
    layers = ours.model.model.layers
    assert all(layer.mlp is layers[0].mlp for layer in layers)
    if case == "adapters":
        assert sum(name.endswith("gate_proj.lora_A.default.weight") for name in now) == 1


def test_a_shared_block_belongs_to_the_first_layer() -> None:
    first, *others = layer_names(shared_llama())
    assert sum("mlp" in name for name in first) == 3
    assert not any("mlp" in name for own in others for name in own)


def test_a_visit_to_another_block_leaves_it_and_to_the_first_sums_all_uses() -> None:
    ours = built(shared_llama(), 4, recipe(1, method={"name": "fedcybgd"}))
    name = "model.layers.0.mlp.up_proj.weight"
    for round in range(4):
        before = weights(ours.model)[name]
        ours.round()
        assert torch.equal(weights(ours.model)[name], before) is (round > 0)


@pytest.mark.parametrize("first", [1, 3])
def test_a_prefix_keeps_what_later_layers_use(first: int) -> None:
    model = shared_llama().double()
    plain, batch = copy.deepcopy(model), collate(samples(3))

    def own(of: SharedLlama) -> list[torch.nn.Parameter]:
        return [p for layer in of.model.layers[first:] for p in layer.self_attn.parameters()]

    prefix = Prefix(model, own(model))
    shared = {id(p) for p in model.model.layers[0].mlp.parameters()}
    assert len(prefix.layers) == first
    assert not any(id(p) in shared for p in prefix.waiting)
    with prefix.kept([batch], "float32", None) as outputs:
        with outputs.serving(batch):
            loss = exact_loss(model, batch)
        wanted = torch.autograd.grad(exact_loss(plain, batch), own(plain))
        for ours, theirs in zip(torch.autograd.grad(loss, own(model)), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "fedcybgd", "order": "permutation"},
        {"name": "fedit", "rank": 2, "targets": ["q_proj", "gate_proj"]},
    ],
    ids=lambda method: method["name"],
)
def test_an_exported_model_shares_it_and_computes_the_same(
    method: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    shared_llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_data(tmp_path / "train.jsonl")
    out = tmp_path / "run"
    run.start(run_recipe(tmp_path, method=method), out)
    assert verify(RunFolder(out)) == ROUNDS
    export(RunFolder(out), tmp_path / "exported")
    replica, tokenizer = replay(RunFolder(out))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert exported.model.layers[0].mlp is exported.model.layers[3].mlp
    found, wanted = logits(exported, tokenizer), logits(replica, tokenizer)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
