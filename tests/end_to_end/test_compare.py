"""What a person does: compare two methods, press Ctrl-C, and type the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

from fullfed.recipe_file import load_recipe
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify

RECIPE = {
    "model": {"path": "builtin"},
    "data": {"train": "builtin", "test_samples": 12},
    "federation": {"rounds": 4, "clients_per_round": 2},
    "local": {"learning_rate": 0.3, "steps": 2},
    "method": {"name": "fedavg"},
    "compare": {"sketch": {"method": {"name": "ferret", "coordinates": 256}}},
}


def children(process: int) -> set[Path]:
    """The folders under /proc of a process's children."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == process:
            found.add(path.parent)
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are looked up in /proc")
def test_two_methods_with_two_seeds_interrupted_and_carried_on(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(RECIPE))
    out = tmp_path / "out"
    fullfed = str(Path(sys.executable).with_name("fullfed"))
    command = [fullfed, "compare", "recipe.toml", "--methods", "fedavg,sketch"]
    command += ["--seeds", "2", "--trials", "2", "--jobs", "2", "--out", str(out)]
    # One thread as in this process: rounding depends on how many there are.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140"}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in the background ignores interrupts, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 600
    while not list(out.glob("runs/*/*/metrics.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    at_work = children(process.pid)
    assert at_work
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, complained = process.communicate()
    assert (process.returncode, complained) == (130, "")
    assert said.endswith("stopped; the same command carries on with what is missing\n")
    while any(path.exists() for path in at_work):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert not (out / "comparison.json").exists()
    begun = {path: path.read_bytes() for path in out.glob("runs/*/*/metrics.jsonl")}
    searches = {path: path.read_bytes() for path in out.glob("search/*.json")}

    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 trials of 2 rounds (8 visits)" in done.stdout
    assert "search:" not in done.stdout, "it had been done"
    assert searches == {path: path.read_bytes() for path in out.glob("search/*.json")}
    for path, content in begun.items():
        assert path.read_bytes().startswith(content), "what was done is kept"
    data = json.loads((out / "comparison.json").read_text())
    assert data["command"] == " ".join(["fullfed", *command[1:]])
    assert [len(method["runs"]) for method in data["methods"]] == [2, 2]
    for method in data["methods"]:
        for measured in method["runs"]:
            folder = RunFolder(out / measured["folder"])
            assert measured["failed"] is None
            assert verify(folder) == 6
            assert measured["rounds"][-1]["loss"] == folder.summary()["loss"]["final"]
    document = (out / "comparison.md").read_text()
    for expected in ("    fullfed compare recipe.toml", "| sketch |", "[compare.sketch]", "torch"):
        assert expected in document
    assert (out / "comparison.html").read_text().lower().startswith("<!doctype html>")

    alone = load_recipe(
        tmp_path / "recipe.toml",
        [
            f"local.learning_rate={method['learning_rate']}",
            "method.name=ferret",
            "method.coordinates=256",
            "federation.seed=1",
        ],
    )
    theirs = RunFolder(out / "runs" / "sketch" / "seed-1").summary()
    assert run.start(alone, tmp_path / "alone")["model_hash"] == theirs["model_hash"]
