"""Runs of the methods with adapters: resumed, verified, measured and exported like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from fullfed.config import Recipe
from fullfed.errors import UserError
from fullfed.federation.log import read_log
from fullfed.federation.messages import Update, decode
from fullfed.runs import run
from fullfed.runs.callback import Callback
from fullfed.runs.export import export
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import measure, replay, verify
from runs.small import ROUNDS, recipe

NAMES = ("fedit", "flora", "ffa-lora")


def of(ingredients: Path, name: str) -> Recipe:
    """The small recipe with a method that trains adapters, measured after every round."""
    return recipe(
        ingredients,
        method={"name": name, "rank": 4},
        local={"optimizer": "adamw", "learning_rate": 0.03},
        evaluation={"every": 1, "metrics": ["loss", "rouge_l"], "max_new_tokens": 4},
    )


@pytest.fixture(scope="module")
def runs(ingredients: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each, that nobody changes."""
    folder = tmp_path_factory.mktemp("adapters")
    for name in NAMES:
        run.start(of(ingredients, name), folder / name)
    return {name: folder / name for name in NAMES}


class StopAfter(Callback):
    """Interrupts a run once a round's line is written."""

    def __init__(self, round: int) -> None:
        self._round = round

    def on_round_end(self, record: dict[str, Any]) -> None:
        if record["round"] == self._round:
            raise KeyboardInterrupt


def untimed(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    timed = ("seconds", "peak_memory_bytes", "peak_memory_by_part", "checksum")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("last", [0, 2])
def test_a_stopped_run_resumes_to_the_same_end(
    runs: dict[str, Path], ingredients: Path, tmp_path: Path, name: str, last: int
) -> None:
    """Stopped after round 0 there is no snapshot to resume from, after round 2 there is."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run.start(of(ingredients, name), out, [StopAfter(last)])
    assert (out / "snapshot.safetensors").exists() == (last == 2)
    run.resume(out)
    assert (out / "updates.log").read_bytes() == (runs[name] / "updates.log").read_bytes()
    assert untimed(out) == untimed(runs[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_verifies_and_measures_as_it_recorded(
    runs: dict[str, Path], ingredients: Path, name: str
) -> None:
    out = runs[name]
    assert verify(RunFolder(out)) == ROUNDS + 2
    summary = json.loads((out / "summary.json").read_text())
    measured = measure(str(out), of(ingredients, name))
    assert measured == {metric: summary[metric]["final"] for metric in ("loss", "rouge_l")}
    assert summary["loss"]["final"] < summary["loss"]["initial"]


def test_adapters_begin_where_the_base_is(runs: dict[str, Path], ingredients: Path) -> None:
    base = measure(str(ingredients / "model"), of(ingredients, "fedit"))["loss"]
    for out in runs.values():
        assert json.loads((out / "base.json").read_text())["loss"] == base


def logits(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    ids = torch.tensor([tokenizer("Say red 3 times.").input_ids])
    with torch.no_grad():
        found: torch.Tensor = model.eval()(ids).logits
    return found


@pytest.mark.parametrize("name", NAMES)
def test_an_export_loads_as_a_checkpoint_and_as_an_adapter(
    runs: dict[str, Path], ingredients: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "model"
    export(RunFolder(runs[name]), target)
    replica, tokenizer = replay(RunFolder(runs[name]))
    expected = logits(replica, tokenizer)
    merged = AutoModelForCausalLM.from_pretrained(target)
    base = AutoModelForCausalLM.from_pretrained(ingredients / "model")
    names = [name for name, _ in base.named_parameters()]
    assert [name for name, _ in merged.named_parameters()] == names
    torch.testing.assert_close(logits(merged, tokenizer), expected, rtol=0, atol=1e-5)
    if name == "flora":
        assert not (target / "adapter").exists()
        return
    about = json.loads((target / "adapter" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] is None, "no path of this machine"
    adapted = PeftModel.from_pretrained(base, target / "adapter")
    assert torch.equal(logits(adapted, tokenizer), expected)


def test_the_accounts_show_what_stacking_costs(runs: dict[str, Path]) -> None:
    """With two clients a round an update holds the factors twice, but for digits in its header."""
    first = {
        name: json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["bytes"]["update"]
        for name, out in runs.items()
    }
    once = read(runs["fedit"])
    factors = sum(tensor.nbytes for tensor in once.tensors.values())
    assert factors == 2 * 4 * ((4 * 8 + 8 * 4) + (4 * 8 + 4 * 4))  # two layers' q_proj and v_proj
    assert abs(first["flora"] - first["fedit"] - factors) < 64
    assert sum(t.nbytes for t in read(runs["ffa-lora"]).tensors.values()) == 2 * 4 * (8 + 4) * 4


def read(out: Path) -> Update:
    """A run's first update."""
    return decode(next(iter(read_log(out / "updates.log"))), Update)


def test_targets_that_match_nothing_stop_a_run_before_it_begins(
    ingredients: Path, tmp_path: Path
) -> None:
    wrong = recipe(ingredients, method={"name": "fedit", "targets": ["c_attn"]})
    with pytest.raises(UserError, match=r"^method\.targets: 'c_attn' is no linear layer"):
        run.start(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()
