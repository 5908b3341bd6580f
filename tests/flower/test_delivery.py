"""Nodes that vanish, come back, are slow or lose orders: who is waited for, and sent what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flower.real import PARTNERS
from flower.small import node_worker
from flower.standin import Dictionary, Node, carry_out, recipe_of
from fullfed import payloads
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_messages import Answer
from fullfed.errors import UserError
from fullfed.runs import run
from fullfed.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("flower_process")

ALL = {"quorum": 1.0, "deadline_seconds": 1e6}


@pytest.mark.parametrize("method", ["ferret", "fedavg"])
def test_a_node_that_was_away_is_caught_up_by_what_is_smaller(
    folder: Path, tmp_path: Path, workers: list[NodeWorker], method: str
) -> None:
    options = {"coordinates": 300} if method == "ferret" else {}
    recipe = recipe_of(folder, 5, method={"name": method, **options})
    grid = Dictionary.of(workers)
    grid.nodes[2].there = lambda: len(RunFolder(tmp_path / "run").metrics()) in (0, 4)
    grid.nodes[3].there = lambda: False
    records = carry_out(recipe, grid, tmp_path / "run").metrics()
    absent = [[r["client"] for r in record["refused"]] for record in records]
    assert absent == [[3], [2, 3], [2, 3], [2, 3], [3]]
    _, back = grid.sent_to(2)
    if method == "fedavg":
        assert back.snapshot
        assert not back.updates
    else:
        assert len(back.updates) == 4
        assert not back.snapshot
    assert records[4]["aggregated"] == [0, 1, 2]
    down = [record["bytes"]["down_by_client"]["2"] for record in records]
    missed = len(back.snapshot) + len(back.last) + sum(len(update) for update in back.updates)
    assert down[1:4] == [0, 0, 0], "what was not sent is not counted"
    assert down[4] == len(back.plan) + missed
    assert all(record["bytes"]["down_by_client"]["3"] == 0 for record in records)


@pytest.mark.parametrize(
    "tables",
    [
        {"method": {"name": "ferret", "coordinates": 300}},
        {"method": {"name": "fedavg"}, "codec": {"name": "dense", "precision": "float32"}},
        {"method": {"name": "fedavg"}, "codec": {"name": "dense", "precision": "int8"}},
    ],
)
def test_what_is_in_files_makes_the_same_run(
    folder: Path, tmp_path: Path, tables: dict[str, Any]
) -> None:
    """Messages, and the values before visits."""
    recipe = recipe_of(folder, 2, **tables)
    logs = []
    for large in (payloads.LARGE, -1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(payloads, "LARGE", large)
            own = tmp_path / str(large)
            workers = [node_worker(folder, n, own / f"state-{n}") for n in range(len(PARTNERS))]
            carry_out(recipe, Dictionary.of(workers), own / "run")
            logs.append((own / "run/updates.log").read_bytes())
        for worker in workers:
            worker.leave()
    assert logs[0] == logs[1]


def test_a_restarted_server_sends_what_each_node_lacks_and_no_more(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    recipe, stop = recipe_of(folder, 3), [False]

    def stopping(frames: Mapping[str, bytes]) -> Mapping[str, bytes] | None:
        stop[0] = len(RunFolder(tmp_path / "run").metrics()) == 2 and not stop[0]
        if stop[0]:
            raise KeyboardInterrupt
        return workers[0].handle(frames)

    grid = Dictionary.of(workers)
    grid.nodes[0].handle = stopping
    with pytest.raises(KeyboardInterrupt):
        carry_out(recipe, grid, tmp_path / "run")
    grid.orders.clear()
    carry_out(recipe, grid, tmp_path / "run")
    assert sorted(client for client, _ in grid.orders) == [0, 1, 2, 3]
    assert all(len(order.updates) == 1 for _, order in grid.orders)


def test_a_node_that_comes_back_is_asked_again_and_answers(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    grid = Dictionary.of(workers)

    def lost(frames: Mapping[str, bytes]) -> None:
        workers[1].handle(frames)
        grid.nodes[1] = Node(workers[1].handle, since="later")

    grid.nodes[1].handle = lost
    recipe = recipe_of(folder, 1, deployment=ALL)
    [record] = carry_out(recipe, grid, tmp_path / "run").metrics()
    assert record["aggregated"] == [0, 1, 2, 3]
    first, again = grid.sent_to(1)
    assert record["bytes"]["down_by_client"]["1"] == len(first.plan) + len(again.plan)


def test_a_lost_order_is_sent_again_until_there_is_a_quorum(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    grid = Dictionary.of(workers)

    def at_last(frames: Mapping[str, bytes]) -> Mapping[str, bytes]:
        if len(grid.sent_to(1)) < 10:
            raise ConnectionError
        return workers[1].handle(frames)

    grid.nodes[1].handle = at_last
    recipe = recipe_of(folder, 1, deployment=ALL)
    [record] = carry_out(recipe, grid, tmp_path / "run").metrics()
    assert record["aggregated"] == [0, 1, 2, 3]
    assert record["refused"] == []


def test_where_there_is_a_quorum_an_order_is_lost_only_so_often(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    grid = Dictionary.of(workers)

    def lose(frames: Mapping[str, bytes]) -> Mapping[str, bytes]:
        raise ConnectionError

    grid.nodes[2].handle = lose
    recipe = recipe_of(folder, 1, deployment={"quorum": 0.75, "deadline_seconds": 1e6})
    [record] = carry_out(recipe, grid, tmp_path / "run").metrics()
    assert record["aggregated"] == [0, 1, 3]
    [refused] = record["refused"]
    assert refused == {"client": 2, "reason": "its Flower app's process died (Flower's error 8)"}


def test_of_two_answers_to_two_orders_one_counts(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    """A node that only seemed to be away answers the order sent before and the one after."""
    grid = Dictionary.of(workers)

    answers = []

    def seen_again(frames: Mapping[str, bytes]) -> Mapping[str, bytes]:
        grid.nodes[1].since = "later"
        answers.append(workers[1].handle(frames))
        return answers[-1]

    grid.nodes[1].handle = seen_again
    grid.nodes[1].silent = lambda: len(grid.sent_to(1)) < 2
    grid.nodes[3].silent = lambda: grid.pulled.count(1) < 2
    recipe = recipe_of(folder, 1, deployment=ALL)
    [record] = carry_out(recipe, grid, tmp_path / "run").metrics()
    assert record["aggregated"] == [0, 1, 2, 3]
    reason = "the client has answered this plan already"
    assert record["refused"] == [{"client": 1, "reason": reason}]
    [answered] = {len(Answer.of(frames).report) for frames in answers}
    assert record["bytes"]["up_by_client"]["1"] == 2 * answered


@pytest.mark.parametrize("malformed", [False, True])
def test_a_late_report_is_refused_recorded_and_in_nobodys_way(
    folder: Path, tmp_path: Path, workers: list[NodeWorker], malformed: bool
) -> None:
    """Node 1 vanishes once it has its order; it is back, with what it made of it, a round later."""
    grid = Dictionary.of(workers)
    if malformed:
        answer = workers[1].handle

        def spoilt(frames: Mapping[str, bytes]) -> Mapping[str, bytes]:
            frames = answer(frames)
            return {"nonsense": b""} if len(grid.sent_to(1)) == 1 else frames

        grid.nodes[1].handle = spoilt

    def rounds() -> int:
        return len(RunFolder(tmp_path / "run").metrics())

    grid.nodes[1].there = lambda: rounds() > 0 or not grid.sent_to(1)
    grid.nodes[1].silent = lambda: rounds() == 0
    grid.nodes[3].silent = lambda: rounds() == 1 and grid.pulled.count(1) < 2
    recipe = recipe_of(folder, 2, deployment={"quorum": 0.75, "deadline_seconds": 1e6})
    first, second = carry_out(recipe, grid, tmp_path / "run").metrics()
    assert first["aggregated"] == [0, 2, 3]
    assert first["refused"] == [{"client": 1, "reason": "no report before the round ended"}]
    assert second["aggregated"] == [0, 1, 2, 3]
    reason = "the report came after its round had ended"
    assert second["refused"] == [{"client": 1, "reason": reason}]


def test_the_deadline_closes_a_round_without_a_node_that_does_not_answer(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    grid = Dictionary.of(workers)
    grid.nodes[1].silent = lambda: True
    recipe = recipe_of(folder, 1, deployment={"quorum": 0.75, "deadline_seconds": 1.0})
    [record] = carry_out(recipe, grid, tmp_path / "run").metrics()
    assert record["aggregated"] == [0, 2, 3]
    assert record["refused"] == [{"client": 1, "reason": "no report before the round ended"}]


def test_without_a_quorum_at_the_deadline_the_run_stops_and_can_go_on(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    recipe = recipe_of(folder, 1, deployment={"deadline_seconds": 1.0, "quorum": 0.75})
    grid = Dictionary.of(workers)
    grid.nodes[1].handle = grid.nodes[2].handle = lambda frames: None
    with pytest.raises(UserError, match="only 2 clients sent a usable report"):
        carry_out(recipe, grid, tmp_path / "run")
    assert RunFolder(tmp_path / "run").metrics() == []
    for n in (1, 2):
        grid.nodes[n].handle = workers[n].handle
    [record] = carry_out(recipe, grid, tmp_path / "run").metrics()
    assert record["aggregated"] == [0, 1, 2, 3]


@pytest.mark.parametrize("method", ["ferret", "fedavg"])
def test_log_and_bytes_are_those_of_a_run_in_one_process(
    folder: Path, tmp_path: Path, workers: list[NodeWorker], method: str
) -> None:
    """With cohorts of two, so that clients miss updates."""
    options = {"coordinates": 300} if method == "ferret" else {}
    federation = {"rounds": 6, "clients_per_round": 2}
    recipe = recipe_of(folder, 6, method={"name": method, **options}, federation=federation)
    ours, grid = RunFolder(tmp_path / "ours"), Dictionary.of(workers)
    flowers = carry_out(recipe, grid, tmp_path / "flowers")
    run.start(recipe, ours.path)
    assert flowers.log_file.read_bytes() == ours.log_file.read_bytes()
    assert [r["bytes"] for r in flowers.metrics()] == [r["bytes"] for r in ours.metrics()]
    assert any(order.snapshot for _, order in grid.orders) == (method == "fedavg")


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ({"name": "fedavg"}, {}),
        ({"name": "fedavg"}, {"dtype": "bfloat16"}),
        ({"name": "fedavg"}, {"dtype": "bfloat16", "rounding": "stochastic"}),
        ({"name": "ferret", "coordinates": 300}, {}),
    ],
    ids=["float32", "bfloat16", "stochastic", "ferret"],
)
def test_the_bytes_that_are_counted_are_those_that_were_sent(
    folder: Path, tmp_path: Path, workers: list[NodeWorker], method: Any, model: Any
) -> None:
    """To the byte, whatever is smaller: round 1 brings an update, which is larger than a snapshot
    where the model is in 16 bits."""
    changes = {"model": model} if model else {}
    recipe, grid = recipe_of(folder, 3, method=method, **changes), Dictionary.of(workers)
    records = carry_out(recipe, grid, tmp_path / "run").metrics()
    for client in range(4):
        sent = [
            len(o.plan) + len(o.snapshot) + len(o.last) + sum(map(len, o.updates))
            for o in grid.sent_to(client)
        ]
        assert [r["bytes"]["down_by_client"][str(client)] for r in records] == sent


def test_no_time_that_a_node_claims_breaks_a_run(
    folder: Path, tmp_path: Path, workers: list[NodeWorker]
) -> None:
    grid = Dictionary.of(workers)
    claims = [(1.7e308, 0.0), (-5.0, 1e300), (3.0, -1.7e308)]

    def claiming(node: NodeWorker, train: float, encode: float) -> Any:
        def handle(frames: Mapping[str, bytes]) -> Mapping[str, bytes]:
            answer = Answer.of(node.handle(frames))
            return replace(answer, train_seconds=train, encode_seconds=encode).frames()

        return handle

    for n, claim in enumerate(claims):
        grid.nodes[n].handle = claiming(workers[n], *claim)
    grid.nodes[3].handle = claiming(workers[3], 7.0, 2.0)
    recipe = recipe_of(folder, 2, deployment={"quorum": 1.0, "deadline_seconds": 1000.0})
    run = carry_out(recipe, grid, tmp_path / "run")
    seconds = run.summary()["seconds"]
    assert (seconds["train"], seconds["encode"]) == (2 * 1010.0, 2 * 1002.0)
