"""Flower's own simulation, with the app that a federation runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flower.real import write_recipe
from fullfed.cli import app
from fullfed.federation.recipe import load_recipe
from fullfed.runs import run
from fullfed.runs.folder import RunFolder


def test_the_log_is_that_of_a_run_in_one_process(folder: Path, tmp_path: Path) -> None:
    """Of FedCyBGD, whose clients keep something between visits to different processes."""
    pytest.importorskip("ray")
    recipe = write_recipe(
        folder,
        method={"name": "fedcybgd", "blocks": 2, "clients_per_block": 2},
        federation={"rounds": 3, "clients_per_round": 4},
    )
    ours, flowers = RunFolder(tmp_path / "ours"), RunFolder(tmp_path / "flowers")
    done = CliRunner().invoke(app, ["simulate", str(recipe), "--out", str(flowers.path)])
    assert done.exit_code == 0, (done.output, done.exception)
    summary = run.start(load_recipe(recipe), ours.path)
    assert flowers.log_file.read_bytes() == ours.log_file.read_bytes()
    assert flowers.summary()["model_hash"] == summary["model_hash"]
    accounts = [[record["bytes"] for record in each.metrics()] for each in (flowers, ours)]
    assert accounts[0] == accounts[1]
