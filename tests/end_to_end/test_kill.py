"""What a person does: start a run, lose the machine, resume it by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import tomli_w

from fullfed.recipe_file import load_recipe
from fullfed.runs import run
from runs.small import tables, write_data, write_model

FULLFED = Path(sys.executable).with_name("fullfed")
# One thread as in this process: rounding depends on how many there are.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
ROUNDS = 16


def test_a_run_killed_in_its_middle_is_resumed_to_the_same_model(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_data(tmp_path / "train.jsonl")
    recipe = tables(tmp_path)
    recipe["federation"]["rounds"] = ROUNDS
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run.start(load_recipe(tmp_path / "recipe.toml"), whole)
    command = [FULLFED, "run", tmp_path / "recipe.toml", "--out", broken]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    log = broken / "updates.log"
    half = (whole / "updates.log").stat().st_size // 2
    deadline = time.monotonic() + 600
    while not log.exists() or log.stat().st_size < half:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (broken / "summary.json").exists()
    done = subprocess.run(
        [FULLFED, "resume", broken], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "going on after round" in done.stdout
    assert log.read_bytes() == (whole / "updates.log").read_bytes()
    hashes = {
        json.loads((out / "summary.json").read_text())["model_hash"] for out in (whole, broken)
    }
    assert len(hashes) == 1
    rounds = [json.loads(line)["round"] for line in (broken / "metrics.jsonl").open()]
    assert rounds == list(range(ROUNDS))
