"""The resident worker: what a node answers, whatever it holds and whatever happens to it."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flower.real import LOOSE, PARTNERS
from flower.small import RUN, Reference, node_worker, reference
from fullfed.config_data import ColumnsTable
from fullfed.deployment.node_task import TaskLoader
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_limits import Limits
from fullfed.engines.node_messages import Answer, Order
from runs.small import write_model

ROUNDS = 5
METHODS: dict[str, dict[str, object]] = {
    "ferret": {"name": "ferret", "coordinates": 300},
    "scaled": {"name": "ferret", "coordinates": 300, "scales": "curvature"},
    "fedavg": {"name": "fedavg"},
    # Its clients keep what rounding took, between their visits to a block.
    "fedcybgd": {"name": "fedcybgd", "blocks": 2, "clients_per_block": 2},
    # Its clients train different parts in the same round.
    "embracing-fl": {"name": "embracing-fl"},
    # Its clients train other parameters after a round.
    "blockllm": {"name": "blockllm", "patience": 2},
    "trained by TRL's DPOTrainer": {"name": "fedavg"},
}
TABLES = {
    "trained by TRL's DPOTrainer": {
        "trainer": {"name": "dpo"},
        "local": {"optimizer": "adamw", "learning_rate": 1e-3},
    }
}


@pytest.fixture(scope="module", params=METHODS)
def known(folder: Path, request: pytest.FixtureRequest) -> Reference:
    return reference(folder, ROUNDS, METHODS[request.param], **TABLES.get(request.param, {}))


@pytest.fixture(scope="module")
def ferret(folder: Path) -> Reference:
    return reference(folder, ROUNDS, METHODS["ferret"])


def ask(node: NodeWorker, order: Order) -> Answer:
    return Answer.of(node.handle(order.frames()))


def test_a_node_answers_what_the_client_answers_in_one_process(
    known: Reference, folder: Path, tmp_path: Path
) -> None:
    node = node_worker(folder, 1, tmp_path / "state")
    for round in range(ROUNDS):
        answer = ask(node, known.order(round, 1, since=max(round - 1, 0)))
        assert (answer.version, answer.report) == (round, known.reports[round, 1])


def test_a_nodes_data_may_be_many_files_with_other_fields(
    ferret: Reference, folder: Path, tmp_path: Path
) -> None:
    lines = (folder / f"{PARTNERS[1]}.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    renamed = [{"q": r["prompt"], "a": r["chosen"], "ward": 1} for r in records]
    (tmp_path / "data/2").mkdir(parents=True)
    (tmp_path / "data/1.json").write_text(json.dumps(renamed[:3]))
    with (tmp_path / "data/2/rest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["ward", "a", "q"])
        table.writeheader()
        table.writerows(renamed[3:])
    columns = ColumnsTable(prompt="q", completion="a")
    for number, source in enumerate(("data", "data/**")):
        load = TaskLoader(
            str(tmp_path / source),
            str(folder / "model"),
            limits=Limits(**LOOSE),
            columns=columns,
            ignore=["ward"],
        )
        node = NodeWorker(tmp_path / f"state-{number}", load, Limits(**LOOSE))
        assert ask(node, ferret.order(0, 1)).report == ferret.reports[0, 1]
        node.leave()


@pytest.mark.parametrize("killed_after", range(1, ROUNDS))
def test_a_killed_worker_goes_on_from_its_disk(
    known: Reference, folder: Path, tmp_path: Path, killed_after: int
) -> None:
    """Nothing is closed or flushed on purpose: the first worker is only left where it is."""
    first = node_worker(folder, 0, tmp_path / "state")
    for round in range(killed_after):
        ask(first, known.order(round, 0, since=max(round - 1, 0)))
    first.leave()  # a killed process lets its locks go
    second = node_worker(folder, 0, tmp_path / "state")
    order = replace(known.order(killed_after, 0, since=killed_after - 1), settings=b"")
    answer = ask(second, order)
    assert answer.report == known.reports[killed_after, 0]


def test_a_worker_killed_before_its_answer_arrived_gives_it_again(
    known: Reference, folder: Path, tmp_path: Path
) -> None:
    first = node_worker(folder, 0, tmp_path / "state")
    for round in range(ROUNDS):
        answer = ask(first, known.order(round, 0, since=max(round - 1, 0)))
    first.leave()
    second = node_worker(folder, 0, tmp_path / "state")
    again = ask(second, replace(known.order(ROUNDS - 1, 0, since=ROUNDS - 1), settings=b""))
    assert again.report == answer.report == known.reports[ROUNDS - 1, 0]


@pytest.mark.parametrize("known", ["ferret", "fedavg"], indirect=True)
def test_a_snapshot_is_as_good_as_the_updates(
    known: Reference, folder: Path, tmp_path: Path
) -> None:
    node = node_worker(folder, 2, tmp_path / "state")
    snapshot, last = known.snapshots[4]
    order = Order(RUN, known.plans[4, 2], snapshot=snapshot, last=last, settings=known.settings)
    assert ask(node, order).report == known.reports[4, 2]
    node.leave()
    again = node_worker(folder, 2, tmp_path / "state")
    assert ask(again, Order(RUN, known.plans[4, 2])).report == known.reports[4, 2]


def test_a_node_says_what_it_lacks(ferret: Reference, folder: Path, tmp_path: Path) -> None:
    node = node_worker(folder, 0, tmp_path / "state")
    assert ask(node, replace(ferret.order(0, 0), settings=b"")) == Answer(-1)
    assert ask(node, ferret.order(3, 0, since=2)) == Answer(0), "a gap is no use"
    assert ask(node, replace(ferret.order(3, 0), updates=())) == Answer(0)
    assert ask(node, ferret.order(3, 0)).report == ferret.reports[3, 0]
    assert ask(node, ferret.order(4, 0)).report == ferret.reports[4, 0], "known ones are skipped"


def test_the_same_plan_again_is_answered_without_training_again(
    ferret: Reference, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node = node_worker(folder, 0, tmp_path / "state")
    answers = [ask(node, ferret.order(0, 0)) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert caplog.text.count("round 0 as client 0") == 1
    assert caplog.text.count("loaded") == 1


def test_the_log_says_how_far_a_long_visit_is(
    ferret: Reference,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("fullfed.engines.node.QUIET_SECONDS", 0.0)  # every visit takes long
    ask(node_worker(folder, 0, tmp_path / "state"), ferret.order(0, 0))
    said = [text for text in caplog.messages if text.startswith("step ")]
    steps = len(said) - 1
    assert steps > 0
    assert [text.split("  ")[0] for text in said] == [f"step {n}/{steps}" for n in range(steps + 1)]
    assert all("loss" in text and "tokens/s" in text for text in said[1:])


def test_a_stale_plan_is_refused(ferret: Reference, folder: Path, tmp_path: Path) -> None:
    node = node_worker(folder, 0, tmp_path / "state")
    ask(node, ferret.order(2, 0))
    answer = ask(node, ferret.order(1, 0))
    assert answer.failure == "the order was refused: the plan is for version 1, the node has 2"


def test_another_base_model_is_named_on_the_node_and_not_to_the_server(
    ferret: Reference, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(folder / "other", seed=1)
    answer = ask(node_worker(folder, 0, tmp_path / "state", "other"), ferret.order(0, 0))
    assert answer.failure == "its base model is not the one the run begins with"
    assert "this is not the base model the run begins with" in caplog.text


@pytest.mark.parametrize("file", ["settings.json", "snapshot.safetensors", "updates.log"])
def test_a_file_of_another_run_costs_a_catch_up_and_nothing_else(
    ferret: Reference, folder: Path, tmp_path: Path, file: str
) -> None:
    """Of a run of the same shapes, so that nothing but its name tells the file apart."""
    other = reference(folder, ROUNDS, {**METHODS["ferret"], "server_step": 0.5})
    theirs = node_worker(folder, 0, tmp_path / "theirs")
    ask(theirs, replace(other.order(3, 0), run="f" * 16))
    theirs.leave()
    node = node_worker(folder, 0, tmp_path / "state")
    ask(node, ferret.order(3, 0))
    node.leave()
    shutil.copy(tmp_path / "theirs" / ("f" * 16) / file, tmp_path / "state" / RUN / file)
    again = node_worker(folder, 0, tmp_path / "state")
    assert ask(again, replace(ferret.order(4, 0, since=3), settings=b"")).lacks
    assert ask(again, ferret.order(4, 0)).report == ferret.reports[4, 0]


def test_settings_with_another_learning_rate_are_not_the_servers(
    ferret: Reference, folder: Path, tmp_path: Path
) -> None:
    node = node_worker(folder, 0, tmp_path / "state")
    ask(node, ferret.order(3, 0))
    node.leave()
    path = tmp_path / "state" / RUN / "settings.json"
    text = path.read_text()
    path.write_text(text.replace('learning_rate\\":0.', 'learning_rate\\":1.'))
    assert path.read_text() != text
    again = node_worker(folder, 0, tmp_path / "state")
    assert ask(again, replace(ferret.order(4, 0, since=3), settings=b"")).lacks


@pytest.mark.parametrize("file", ["snapshot.safetensors", "updates.log"])
def test_a_damaged_disk_costs_a_catch_up_and_nothing_else(
    ferret: Reference, folder: Path, tmp_path: Path, file: str
) -> None:
    node = node_worker(folder, 0, tmp_path / "state")
    ask(node, ferret.order(3, 0))
    node.leave()
    path = tmp_path / "state" / RUN / file
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged + b"more")
    again = node_worker(folder, 0, tmp_path / "state")
    order = replace(ferret.order(4, 0, since=3), settings=b"")
    assert ask(again, order).lacks
    assert ask(again, ferret.order(4, 0)).report == ferret.reports[4, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"plan": b"no plan"},
        {"updates": (b"no update",)},
        {"snapshot": b"no snapshot", "last": b"x"},
        {"settings": b"{}"},
        {"settings": b"no settings"},
    ],
)
def test_a_bad_order_is_answered_and_the_next_is_carried_out(
    ferret: Reference, folder: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    node = node_worker(folder, 0, tmp_path / "state")
    answer = ask(node, replace(ferret.order(1, 0), **change))
    assert answer.failure
    run = "f" * 16 if "settings" in change else RUN
    assert ask(node, replace(ferret.order(1, 0), run=run)).report == ferret.reports[1, 0]


def test_new_runs_displace_the_oldest_and_only_when_they_are_accepted(
    ferret: Reference, folder: Path, tmp_path: Path
) -> None:
    node = node_worker(folder, 0, tmp_path / "state", most_runs=2)
    ask(node, ferret.order(2, 0))
    for run in ("e" * 16, "f" * 16):
        answer = ask(node, replace(ferret.order(0, 0), run=run))
        assert answer.report == ferret.reports[0, 0]
        refused = replace(ferret.order(0, 0), run="d" * 16, settings=b"{}")
        assert ask(node, refused).failure
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"e" * 16, "f" * 16}
    again = replace(ferret.order(1, 0), run="e" * 16, settings=b"")
    assert ask(node, again).report == ferret.reports[1, 0]
