"""An estimate is held against what runs count, and against docs/memory.md's formulas by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import fullfed
from fullfed.config import LocalTable
from fullfed.methods.catalogue import METHODS
from fullfed.methods.composition import Composition
from fullfed.runs.assembly import build_method, choose
from fullfed.runs.folder import RunFolder
from fullfed.runs.visit_memory import optimizer_bytes, submodel_visit_bytes, visit_bytes
from fullfed.training.optimizers import CLASSES, make_optimizers
from runs.small import recipe, tables

OPTIONS: dict[str, dict[str, Any]] = {
    "ferret": {"coordinates": 300},
    "cyclic-ferret": {"server_step": 1.0},
    **{name: {"rank": 2} for name in ("fedit", "flora", "ffa-lora", "fed-sb")},
    "fedbuff": {"buffer": 3},
    "flexlora": {"ranks": [1, 2, 3]},
    "fedbpt": {"prompt_tokens": 3, "dimension": 8, "population": 3},
    "fedpeptao": {"prefix_tokens": 2},
    "slora": {"rank": 2, "sparse_rounds": 2},
}
ADAPTERS = ("fedit", "flora", "ffa-lora", "fed-sb", "flexlora", "slora", "fedbpt", "fedpeptao")
# On so small a model headers count: the first's first update brings three factors for each of
# others, and the second's updates are larger than the model, but do not name its parameters.
DOWN_TOLERANCE = {"fed-sb": 0.3, "fedkseed-pro": 0.03}


@pytest.mark.parametrize("name", METHODS)
def test_bytes_are_those_that_a_run_counts(name: str, ingredients: Path, tmp_path: Path) -> None:
    told = tables(ingredients)
    told["method"] = {"name": name, **OPTIONS.get(name, {})}
    told["evaluation"]["every"] = 4
    if METHODS[name].learning_rate is not None:
        told["local"]["learning_rate"] = METHODS[name].learning_rate
    if name == "cyclic-ferret":
        told["codec"] = {"name": "sketch", "coordinates": 100}
    cost, run = fullfed.estimate(told), fullfed.run(told, tmp_path / "run")
    visits = sum(len(line["aggregated"]) for line in run.history)
    if name == "flasc":  # the most: half of the factors do not move as long as the others are 0
        assert run.bytes_up < cost.run_bytes_up < 2 * run.bytes_up
        assert run.bytes_down < cost.run_bytes_down
        return
    assert cost.run_bytes_up == pytest.approx(run.bytes_up, rel=0.01, abs=100 * visits)
    down = DOWN_TOLERANCE.get(name, 0.01)
    assert cost.run_bytes_down == pytest.approx(run.bytes_down, rel=down, abs=150 * visits)
    assert cost.bytes_up == pytest.approx(cost.run_bytes_up / visits, abs=1)
    if not name.startswith(
        ("fedit", "flora", "ffa", "fed-sb", "flexlora", "slora")
    ):  # with adapters
        assert cost.parameters == run["parameters"]


@pytest.mark.parametrize(
    ("codec", "rule"),
    [
        ({"name": "dense", "precision": "int8"}, "mean"),
        ({"name": "sketch", "coordinates": 300, "seeds": "client"}, "mean"),
        ({"name": "sketch", "upload": "2KiB", "seeds": "shared"}, "trimmed-mean"),
        ({"name": "sketch", "coordinates": 20, "scales": "curvature"}, "mean"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_so_they_are_with_any_codec(
    codec: dict[str, Any], rule: str, ingredients: Path, tmp_path: Path
) -> None:
    told = tables(ingredients) | {"method": {"name": "fedavg"}, "codec": codec}
    told["aggregation"] = {"name": rule}
    told["federation"]["clients_per_round"] = 4
    cost, run = fullfed.estimate(told), fullfed.run(told, tmp_path / "run")
    assert cost.run_bytes_up == pytest.approx(run.bytes_up, rel=0.1)
    scales = len(RunFolder(tmp_path / "run").scales())
    assert cost.scales_bytes == pytest.approx(scales, rel=0.5)
    more = 4 * (cost.scales_bytes - scales)  # what compression makes of them is not known before
    assert cost.run_bytes_down - more == pytest.approx(run.bytes_down, rel=0.1)


@pytest.mark.parametrize(
    "privacy",
    [
        {"secure_sum": True},
        {"protects": "client", "noise": 1.0, "delta": 1e-3, "clip": 1.0, "clip_quantile": 0.5},
    ],
    ids=["secure", "noisy"],
)
def test_so_they_are_of_sums(privacy: dict[str, Any], ingredients: Path, tmp_path: Path) -> None:
    """The first round's numbers have more bits, and a secure sum has four more messages."""
    method = {"name": "ferret", "coordinates": 300, "seeds": "shared"}
    told = tables(ingredients) | {"method": method, "privacy": privacy}
    told["federation"]["clients_per_round"] = 4
    cost, run = fullfed.estimate(told), fullfed.run(told, tmp_path / "run")
    assert cost.run_bytes_up == pytest.approx(run.bytes_up, rel=0.1)
    assert cost.run_bytes_down == pytest.approx(run.bytes_down, rel=0.1)
    first = max(run.history[0]["bytes"]["up_by_client"].values())
    assert cost.first_bytes_up == pytest.approx(first, rel=0.1)
    secure = "secure_sum" in privacy
    assert ("in the first round)" in str(cost)) == secure == (first > 1.5 * cost.bytes_up)


def test_top_k_sends_at_most_as_much(ingredients: Path, tmp_path: Path) -> None:
    codec = {"name": "topk", "upload": "2KiB"}
    told = tables(ingredients) | {"method": {"name": "fedavg"}, "codec": codec}
    cost, run = fullfed.estimate(told), fullfed.run(told, tmp_path / "run")
    assert run.bytes_up <= cost.run_bytes_up <= 8 * 2048
    assert run.bytes_down <= cost.run_bytes_down


def test_it_counts_clients_and_steps_and_needs_no_weights(ingredients: Path) -> None:
    told = tables(ingredients)
    (ingredients / "model" / "model.safetensors").rename(ingredients / "away")
    try:
        cost = fullfed.estimate(told)
    finally:
        (ingredients / "away").rename(ingredients / "model" / "model.safetensors")
    assert (cost.clients, cost.steps) == (4, 2)
    told["local"] = {"epochs": 3, "batch_size": 3}
    assert fullfed.estimate(told).steps == 3 * 3, "eight samples are three batches"


def test_it_takes_a_model_and_records_in_memory(ingredients: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(ingredients / "model")
    told = tables(ingredients)
    named = fullfed.estimate(told)
    del told["model"]
    assert fullfed.estimate(told, model=model) == named
    told["data"] = {"test_samples": 2}
    records = [{"instruction": f"Say {n}.", "output": str(n)} for n in range(8)]
    cost = fullfed.estimate(told, model=model, clients={"a": records, "b": records, "c": records})
    assert cost.clients == 3


@pytest.mark.parametrize("frozen", ["exact", "int4"])
def test_so_they_are_without_replicas(frozen: str, ingredients: Path, tmp_path: Path) -> None:
    """Every visit is sent a submodel, and the first of a client the static weights."""
    told = tables(ingredients) | {"method": {"name": "fedcybgd", "surrogate": 0.5}}
    told["memory"] = {"frozen": frozen}
    cost, run = fullfed.estimate(told), fullfed.run(told, tmp_path / "run")
    visits = sum(len(line["cohort"]) for line in run.history)
    assert cost.run_bytes_up == pytest.approx(run.bytes_up, rel=0.01, abs=100 * visits)
    assert cost.run_bytes_down == pytest.approx(run.bytes_down, rel=0.01, abs=150 * visits)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    """Four layers, in bfloat16, without weights."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).to(torch.bfloat16)


def built(model: PreTrainedModel, folder: Path, **changes: dict[str, Any]) -> Composition:
    changes = {"local": {"optimizer": "adamw", "steps": 2}, **changes}
    told = recipe(folder, **changes)
    return build_method(told, choose(told), model, 4)


def test_memory_is_that_of_the_formulas(llama: PreTrainedModel, ingredients: Path) -> None:
    d = sum(p.numel() for p in llama.parameters())
    w = max(p.numel() for p in llama.parameters())

    def bytes_of(rounding: Any = "stochastic", **changes: dict[str, Any]) -> int:
        method = built(llama, ingredients, **changes)
        blocks = method.blocks or (method.setting.shapes,)
        return visit_bytes(llama, method, blocks[len(blocks) // 2], rounding)

    small = 8 * len(list(llama.parameters()))  # step counts and the like
    assert bytes_of(method={"name": "fedavg"}) == pytest.approx(22 * d, abs=small)
    masters = bytes_of("master", method={"name": "fedavg"})
    assert masters == pytest.approx(22 * d, abs=small), "they are what the visit begins from"
    sgd = {"optimizer": "sgd", "steps": 2}
    ferret = {"name": "ferret", "coordinates": 300}
    assert bytes_of(method=ferret, local=sgd) == 14 * d
    assert bytes_of(method=ferret, local={**sgd, "momentum": 0.9}) == 18 * d
    assert bytes_of(method={"name": "fedkseed"}, local={"steps": 2}) == 2 * d + 2 * w

    layer = llama.model.layers[2]
    d_b = sum(p.numel() for p in layer.parameters())
    largest = max(p.numel() for p in layer.parameters())
    block = {"name": "fedcybgd"}
    assert bytes_of(method=block) == pytest.approx(2 * d + 20 * d_b, abs=small)
    lean = {"optimizer_in_backward": True}
    local = {"optimizer": "adamw", "steps": 2, "clip_by": "tensor"}
    wanted = 2 * d + 16 * d_b + 6 * largest
    assert bytes_of(method=block, memory=lean, local=local) == pytest.approx(wanted, abs=small)
    caching = bytes_of(method=block, memory={**lean, "cache_inputs": "1MiB"}, local=local)
    assert caching == pytest.approx(wanted + (1 << 20), abs=small)
    packed = bytes_of(method=block, memory={**lean, "frozen": "int8"}, local=local)
    assert 2 * d <= packed < wanted

    weak = built(llama, ingredients, method={**block, "surrogate": 0.5}, memory=lean, local=local)
    plan = weak.plans(0, None)[0]
    kept, d_e, largest_packed = 3 - len(plan.values["dropped"]), d - 4 * d_b, w
    told = d_e + kept * d_b + 18 * d_b + max(6 * largest, 2 * largest_packed)
    assert submodel_visit_bytes(llama, weak, plan) == pytest.approx(told, rel=0.02)


@pytest.mark.parametrize("optimizer", sorted(CLASSES))
def test_an_optimizers_state_is_what_it_keeps(optimizer: str) -> None:
    """Of real tensors, after a real step."""
    shapes = {"matrix": torch.Size((30, 20)), "norm": torch.Size((20,))}
    local, hidden = LocalTable(optimizer=optimizer, learning_rate=0.1), {"matrix"}
    parameters = {name: torch.ones(shape) for name, shape in shapes.items()}
    kept = 0
    for made in set(make_optimizers(local, parameters, hidden, fused=False).values()):
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        made.step()
        values = [value for state in made.state.values() for value in state.values()]
        kept += sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
    assert optimizer_bytes(local, shapes, hidden) == kept
    if optimizer == "adamw":
        assert kept == 8 * 620 + 2 * 4, "two moments, and step counts"


def test_every_worker_process_has_a_model_and_a_visits_memory(ingredients: Path) -> None:
    told = tables(ingredients)
    one = fullfed.estimate(told)
    three = fullfed.estimate(told | {"simulation": {"workers": 3}})
    replica = 4 * one.parameters
    assert one.simulation_bytes == one.memory_bytes == three.memory_bytes
    assert three.simulation_bytes == 3 * one.memory_bytes + replica
    assert "3 worker processes and the server: " in str(three)
    assert "worker" not in str(one)
