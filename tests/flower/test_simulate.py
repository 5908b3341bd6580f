"""Flower's own simulation, with the app that a federation runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from flower.real import PARTNERS, write_recipe
from flower.standin import Dictionary, Node, carry_out
from fullfed.cli import app
from fullfed.deployment.node_task import SimulatedNode
from fullfed.recipe_file import load_recipe
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


@pytest.mark.parametrize(
    "method",
    [
        {"name": "fedcybgd", "blocks": 2},
        {"name": "fedkseed", "seeds": 8},
        {"name": "fedavg"},
        {"name": "ferret", "coordinates": 300, "scales": "curvature"},
    ],
)
@pytest.mark.usefixtures("flower_process")
def test_which_process_is_asked_makes_no_difference(
    folder: Path, tmp_path: Path, method: dict[str, object]
) -> None:
    """Neither where clients keep something, nor where the newest update replaces all others, nor
    where the codec has scales, nor where the log has no older updates."""
    kept = {"snapshot_every": 1, "keep_updates": "since-snapshot"}
    less = kept if method["name"] == "fedavg" else {}
    federation = {"rounds": 5, "clients_per_round": 2, **less}
    local = {"learning_rate": 1e-4, "steps": 2}
    path = write_recipe(folder, method=method, federation=federation, local=local)
    recipe, turns = load_recipe(path), Random(0)
    ours, flowers = RunFolder(tmp_path / "ours"), RunFolder(tmp_path / "flowers")
    process = cache(lambda number: SimulatedNode(flowers.path))

    def handle(frames: Mapping[str, bytes]) -> Mapping[str, bytes]:
        return process(turns.randrange(3)).handle(frames)

    carry_out(recipe, Dictionary({n: Node(handle) for n in range(len(PARTNERS))}), flowers.path)
    run.start(recipe, ours.path)
    assert flowers.log_file.read_bytes() == ours.log_file.read_bytes()
