"""Nodes whose run was taken back: they drop what it no longer holds, and follow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flower.real import PARTNERS
from flower.small import node_worker
from flower.standin import Dictionary, Node, carry_out, recipe_of
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_messages import Answer
from fullfed.runs.replay import verify
from fullfed.runs.rollback import roll_back

pytestmark = pytest.mark.usefixtures("flower_process")

STATEFUL = {"name": "dense", "precision": "int8", "error_feedback": True}


@pytest.fixture(params=["resident", "restarted"])
def successors(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> Iterator[list[NodeWorker]]:
    """The nodes' workers after the rollback: the same, or new ones on the same disk."""
    if request.param == "resident":
        yield workers
        return
    nodes = [node_worker(folder, n, tmp_path / f"state-{n}") for n in range(len(PARTNERS))]
    yield nodes
    for node in nodes:
        node.leave()


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ({"name": "ferret", "coordinates": 300}, {}),
        ({"name": "fedavg"}, {"codec": STATEFUL}),
        ({"name": "fedkseed", "seeds": 16}, {"local": {"learning_rate": 1e-4, "steps": 2}}),
    ],
    ids=["ferret", "states", "cumulative"],
)
@pytest.mark.parametrize("version", [1, 3])
def test_nodes_that_are_ahead_follow_a_run_that_was_taken_back(
    folder: Path,
    tmp_path: Path,
    workers: list[NodeWorker],
    successors: list[NodeWorker],
    method: dict[str, Any],
    changes: dict[str, Any],
    version: int,
) -> None:
    """Their snapshots are of version 2: one rollback goes before it, the other not. Node 3 was away
    for the last round."""
    federation = {"rounds": 4, "clients_per_round": 4, "snapshot_every": 2}
    recipe = recipe_of(folder, 4, method=method, federation=federation, **changes)
    grid = Dictionary.of(workers)
    run = carry_out(recipe, grid, tmp_path / "run")
    log, end = run.log_file.read_bytes(), run.summary()["model_hash"]
    roll_back(run, version)
    if successors is not workers:
        for worker in workers:
            worker.leave()
    grid.nodes = {n: Node(node.handle) for n, node in enumerate(successors)}
    carry_out(recipe, grid, run.path)
    assert all(record["aggregated"] == [0, 1, 2, 3] for record in run.metrics())
    verify(run)
    if version == 3 or "codec" not in changes:  # a node keeps its last two states
        assert run.log_file.read_bytes() == log
        assert run.summary()["model_hash"] == end


def test_an_order_from_before_the_run_was_taken_back_is_refused(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    """Flower may deliver it late; the node must not go to rounds that are no more."""
    recipe, grid = recipe_of(folder, 3), Dictionary.of(workers)
    run = carry_out(recipe, grid, tmp_path / "run")
    stale = grid.sent_to(0)[-1]
    roll_back(run, 1)
    carry_out(recipe, grid, run.path)
    answer = Answer.of(workers[0].handle(stale.frames()))
    assert answer.failure == (
        "the order was refused: it is from before the run was taken back to an earlier version"
    )
    assert answer.version == 2
