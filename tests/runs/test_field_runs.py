"""Runs of methods whose visits train different parts: resumed, verified and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from fullfed.config import Recipe
from fullfed.runs import run
from fullfed.runs.export import export
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import replay, verify
from runs.small import ROUNDS, recipe
from runs.test_adapters import StopAfter, logits, untimed

CODECS: dict[str, dict[str, Any]] = {
    "rounded": {"name": "dense", "precision": "bfloat16", "error_feedback": True},
    "sketch": {"name": "sketch", "coordinates": 40},
}


def of(ingredients: Path, name: str, codec: str) -> Recipe:
    step = {"server_step": 0.2} if codec == "sketch" else {}
    local = {"optimizer": "adamw", "learning_rate": 0.01, "optimizer_state": "kept"}
    method = {"name": name, "codec": CODECS[codec], **step}
    return recipe(ingredients, method=method, local=local)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", ["embracing-fl", "blockllm"])
def test_a_stopped_run_resumes_to_the_same_end(
    name: str, codec: str, ingredients: Path, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run.start(of(ingredients, name, codec), whole)
    with pytest.raises(KeyboardInterrupt):
        run.start(of(ingredients, name, codec), stopped, [StopAfter(2)])
    run.resume(stopped)
    assert (stopped / "updates.log").read_bytes() == (whole / "updates.log").read_bytes()
    assert untimed(stopped) == untimed(whole)
    assert verify(RunFolder(whole)) == ROUNDS
    export(RunFolder(whole), tmp_path / "model")
    replica, tokenizer = replay(RunFolder(whole))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(exported, tokenizer), logits(replica, tokenizer))
