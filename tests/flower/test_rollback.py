"""Nodes whose run was taken back: they drop what it no longer holds, and follow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flower.real import PARTNERS
from flower.small import RUN, node_worker
from flower.standin import Dictionary, Node, carry_out, recipe_of
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_messages import Answer
from fullfed.engines.node_state import NodeState
from fullfed.errors import UserError
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


@pytest.mark.parametrize("damaged", ["updates.log", "settings.json"])
def test_damage_after_a_rollback_costs_a_catch_up_and_no_state(
    folder: Path, tmp_path: Path, damaged: str
) -> None:
    """A node that asks for everything anew has followed the rollback once; its states count."""
    federation = {"clients_per_round": 4, "snapshot_every": 2}
    ends = []
    for name in ("whole", damaged):
        for rounds in (4, 5, 6):  # back to 3 after the first, and damage after the second
            recipe = recipe_of(
                folder,
                rounds,
                method={"name": "fedavg"},
                codec=STATEFUL,
                federation={**federation, "rounds": rounds},
            )
            state = tmp_path / name
            nodes = [node_worker(folder, n, state / str(n)) for n in range(len(PARTNERS))]
            run = carry_out(recipe, Dictionary.of(nodes), tmp_path / f"run-{name}")
            for node in nodes:
                node.leave()
            if rounds == 4:
                roll_back(run, 3)
            elif rounds == 5 and name == damaged:
                flip(state / "0" / RUN / damaged)
        ends.append(run.summary()["model_hash"])
    assert ends[0] == ends[1]


def test_a_record_that_is_no_update_is_damage(tmp_path: Path) -> None:
    """The node asks for everything anew, where it would refuse every order."""
    state = NodeState(tmp_path, RUN)
    state.create(b"settings", b"", b"")
    state.append(b"junk")
    with pytest.raises(UserError, match=r"updates\.log: this is not an update \(the message does"):
        state.follow_rollbacks((0,))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_which_rollbacks_a_node_has_followed_cannot_be_lost_unnoticed(
    folder: Path, tmp_path: Path, workers: list[NodeWorker], caplog: pytest.LogCaptureFixture
) -> None:
    federation = {"rounds": 3, "clients_per_round": 4, "snapshot_every": 2}
    recipe = recipe_of(folder, 3, method={"name": "fedavg"}, federation=federation, codec=STATEFUL)
    grid = Dictionary.of(workers)
    run = carry_out(recipe, grid, tmp_path / "run")
    roll_back(run, 2)
    carry_out(recipe, grid, run.path)
    workers[0].leave()
    file = tmp_path / "state-0" / RUN / "rollbacks.json"
    file.unlink()
    workers[0].handle(grid.sent_to(0)[-1].frames())
    assert f"{file}: the file is missing; restore a copy of it." in caplog.text


def test_a_node_names_no_file_of_its_own_to_the_server(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    """What cannot be read is the client's state; it is not the order's fault."""
    federation = {"clients_per_round": 4, "snapshot_every": 2}
    method, grid = {"name": "fedavg"}, Dictionary.of(workers)
    for rounds in (2, 3):
        table = {**federation, "rounds": rounds}
        recipe = recipe_of(folder, rounds, method=method, codec=STATEFUL, federation=table)
        run = carry_out(recipe, grid, tmp_path / "run")
        if rounds == 2:
            flip(next((tmp_path / "state-0" / RUN / "states").glob("*/index.json")))
    [refused] = run.metrics()[-1]["refused"]
    assert refused["client"] == 0
    assert str(tmp_path) not in refused["reason"]
    assert "its operator finds the reason in the node's worker.log" in refused["reason"]
