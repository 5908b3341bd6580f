"""A run of Fed-SB, whose first update is of another kind: resumed, verified, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fullfed.runs import run
from fullfed.runs.export import export
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import measure, replay, verify
from runs.small import ROUNDS
from runs.test_adapters import StopAfter, logits, of, untimed


@pytest.fixture(scope="module")
def out(ingredients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, that nobody changes."""
    folder = tmp_path_factory.mktemp("fed-sb") / "run"
    run.start(of(ingredients, "fed-sb"), folder)
    return folder


@pytest.mark.parametrize("last", [0, 2])
def test_a_stopped_run_resumes_to_the_same_end(
    out: Path, ingredients: Path, tmp_path: Path, last: int
) -> None:
    """Stopped after round 0 the factors come from the log, after round 2 from a snapshot."""
    again = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run.start(of(ingredients, "fed-sb"), again, [StopAfter(last)])
    run.resume(again)
    assert (again / "updates.log").read_bytes() == (out / "updates.log").read_bytes()
    assert untimed(again) == untimed(out)


def test_the_first_round_is_in_the_account(out: Path) -> None:
    """Two layers of width 8 (4 for keys and values, 16 inside); R is 4 by 4 in 14 matrices."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    gradients, cores, header = 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16) * 4, 14 * 4**2 * 4, 2048
    for line in lines:
        numbers = cores if line["round"] else gradients
        for sent in line["bytes"]["up_by_client"].values():
            assert numbers < sent < numbers + header


def test_an_export_is_the_model_that_was_measured(
    out: Path, ingredients: Path, tmp_path: Path
) -> None:
    assert verify(RunFolder(out)) == ROUNDS + 2
    export(RunFolder(out), tmp_path / "model")
    replica, tokenizer = replay(RunFolder(out))
    expected = logits(replica, tokenizer)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(merged, tokenizer), expected, rtol=0, atol=1e-5)
    recorded = json.loads((out / "summary.json").read_text())["loss"]["final"]
    exported = measure(str(tmp_path / "model"), of(ingredients, "fed-sb"))["loss"]
    assert exported == pytest.approx(recorded, abs=1e-5)
    base = AutoModelForCausalLM.from_pretrained(ingredients / "model")
    adapted = PeftModel.from_pretrained(base, tmp_path / "model" / "adapter")
    assert torch.equal(logits(adapted, tokenizer), expected)
