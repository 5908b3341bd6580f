"""kill -9 of a worker, of a node and of the ServerApp, each at a random moment of a run.

Of FedCyBGD, whose clients keep what rounding took of their reports, on their nodes' disks.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from flower.real import PARTNERS, Federation, wait_until, write_recipe
from fullfed.federation.recipe import load_recipe
from fullfed.runs import run
from fullfed.runs.folder import RunFolder

ROUNDS = 8
A_ROUND = 3.0  # seconds; about what one takes on a quiet machine


def test_whatever_is_killed_the_run_ends_with_the_model_it_would_have_had(
    federation: Federation, tmp_path: Path
) -> None:
    recipe = write_recipe(
        federation.folder,
        model={"path": "builtin"},
        method={"name": "fedcybgd", "blocks": 2, "clients_per_block": 2},
        federation={"rounds": ROUNDS, "clients_per_round": 2},
    )
    undisturbed = run.start(load_recipe(recipe), tmp_path / "whole")
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    cohorts = [record["cohort"] for record in whole.metrics()]
    random_moments = random.Random(0)

    def some_moment_of(round: int) -> str:
        """Wait for it; return a partner that takes part in the round."""
        wait_until(lambda: len(killed.metrics()) >= round, f"round {round}")
        time.sleep(random_moments.uniform(0, A_ROUND))
        return PARTNERS[random_moments.choice(cohorts[round])]

    started = federation.start(recipe, killed.path)
    workless = federation.nodes[some_moment_of(1)]
    workless.kill_member("fullfed worker")
    nodeless = federation.nodes[some_moment_of(3)]
    nodeless.kill_member("flower-supernode")
    some_moment_of(5)
    federation.server.kill_member("flwr-serverapp")
    assert started.code() == 2
    assert "the run's process has died after round" in started.said()
    again = federation.start(recipe, killed.path)
    assert again.code() == 0, again.said()
    assert "the worker has died and is started again" in workless.said()
    assert "Flower's node has died and is started again" in nodeless.said()
    assert killed.log_file.read_bytes() == whole.log_file.read_bytes()
    assert killed.summary()["model_hash"] == undisturbed["model_hash"]
    assert [record["merged"] for record in killed.metrics()] == cohorts
