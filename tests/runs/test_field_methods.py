"""Runs of adapters that change in a way of their own: resumed, verified, measured, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fullfed.config import Recipe
from fullfed.runs import run
from fullfed.runs.export import export
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import measure, replay, verify
from runs.small import ROUNDS, recipe
from runs.test_adapters import StopAfter, logits, untimed

METHODS: dict[str, dict[str, Any]] = {
    "flexlora": {"ranks": [1, 2, 4], "alpha": 4.0},
    "fedbpt": {"prompt_tokens": 3, "dimension": 8, "population": 3},
    "fedpeptao": {"prefix_tokens": 2},
    "slora": {"rank": 4, "alpha": 2.0, "density": 0.1, "sparse_rounds": 2},
}
ALONE = {"fedbpt": 3, "fedpeptao": 0}  # not merged; positions of an adapter before the tokens'


def of(ingredients: Path, name: str) -> Recipe:
    return recipe(
        ingredients,
        method={"name": name, **METHODS[name]},
        local={"optimizer": "adamw", "learning_rate": 0.03},
        federation={"clients_per_round": 3} if name == "fedbpt" else {},
        evaluation={"every": 1},
    )


@pytest.fixture(scope="module")
def runs(ingredients: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each, that nobody changes."""
    folder = tmp_path_factory.mktemp("field")
    for name in METHODS:
        run.start(of(ingredients, name), folder / name)
    return {name: folder / name for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_stopped_run_resumes_to_the_same_end(
    runs: dict[str, Path], ingredients: Path, tmp_path: Path, name: str, last: int
) -> None:
    """From the log after rounds 0 and 1, from a snapshot after round 2."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run.start(of(ingredients, name), out, [StopAfter(last)])
    run.resume(out)
    assert (out / "updates.log").read_bytes() == (runs[name] / "updates.log").read_bytes()
    assert untimed(out) == untimed(runs[name])


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ALONE])
def test_an_export_is_the_model_that_was_measured(
    runs: dict[str, Path], ingredients: Path, tmp_path: Path, name: str
) -> None:
    out, target = runs[name], tmp_path / "model"
    assert verify(RunFolder(out)) == ROUNDS + 2
    summary = json.loads((out / "summary.json").read_text())["loss"]
    assert summary["final"] != summary["initial"]  # a random model, which few steps change
    export(RunFolder(out), target)
    replica, tokenizer = replay(RunFolder(out))
    expected = logits(replica, tokenizer)
    merged = AutoModelForCausalLM.from_pretrained(target)
    torch.testing.assert_close(logits(merged, tokenizer), expected, rtol=0, atol=1e-5)
    measured = measure(str(target), of(ingredients, name))["loss"]
    assert measured == pytest.approx(summary["final"], abs=1e-5)
    base = AutoModelForCausalLM.from_pretrained(ingredients / "model")
    adapted = PeftModel.from_pretrained(base, target / "adapter")
    assert torch.equal(logits(adapted, tokenizer), expected)


@pytest.mark.parametrize("name", ALONE)
def test_a_prompt_is_exported_as_an_adapter_of_the_base(
    runs: dict[str, Path], ingredients: Path, tmp_path: Path, name: str
) -> None:
    """No ordinary checkpoint has a prompt; without its adapter it is the base."""
    out, target = runs[name], tmp_path / "model"
    assert verify(RunFolder(out)) == ROUNDS + 2
    export(RunFolder(out), target)
    replica, tokenizer = replay(RunFolder(out))
    base, plain = (
        AutoModelForCausalLM.from_pretrained(path) for path in (ingredients / "model", target)
    )
    assert torch.equal(logits(plain, tokenizer), logits(base, tokenizer))
    adapted = PeftModel.from_pretrained(plain, target / "adapter")
    expected, found = logits(replica, tokenizer), logits(adapted, tokenizer)[:, ALONE[name] :]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    summary = json.loads((out / "summary.json").read_text())["loss"]
    assert measure(str(out), of(ingredients, name))["loss"] == summary["final"]
