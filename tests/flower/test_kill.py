"""kill -9 of a worker, of the ServerApp and of a node, each at a random moment of a run."""

from __future__ import annotations

import random
import time
from pathlib import Path

from flower.real import Federation, wait_until, write_recipe
from fullfed.federation.recipe import load_recipe
from fullfed.runs import run
from fullfed.runs.folder import RunFolder

ROUNDS = 6


def test_whatever_is_killed_the_run_ends_with_the_model_it_would_have_had(
    federation: Federation, tmp_path: Path
) -> None:
    recipe = write_recipe(federation.folder, federation={"rounds": ROUNDS, "clients_per_round": 4})
    out = tmp_path / "killed"
    started = federation.start(recipe, out)
    _some_moment_after(out, 1)
    federation.nodes["blue"].kill_member("fullfed worker")
    _some_moment_after(out, 2)
    federation.server.kill_member("flwr-serverapp")
    assert started.code() == 2
    assert "the run's process has died after round" in started.said()
    federation.nodes["green"].kill_member("flower-supernode")
    again = federation.start(recipe, out)
    assert again.code() == 0, again.said()
    assert "the worker has died and is started again" in federation.nodes["blue"].said()
    assert "Flower's node has died and is started again" in federation.nodes["green"].said()
    run.start(load_recipe(recipe), tmp_path / "whole")
    assert (out / "updates.log").read_bytes() == (tmp_path / "whole/updates.log").read_bytes()
    killed, whole = RunFolder(out), RunFolder(tmp_path / "whole")
    assert killed.summary()["model_hash"] == whole.summary()["model_hash"]
    assert [record["round"] for record in killed.metrics()] == list(range(ROUNDS))


def _some_moment_after(out: Path, rounds: int) -> None:
    wait_until(lambda: len(RunFolder(out).metrics()) >= rounds, f"round {rounds}")
    time.sleep(random.uniform(0, 3))
