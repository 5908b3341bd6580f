"""A run: what it writes, and that it writes the same again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fullfed.config import parse_recipe
from fullfed.errors import UserError
from fullfed.federation.log import read_log
from fullfed.federation.messages import Update, decode
from fullfed.randomness import Purpose, Stream, uniforms
from fullfed.recipe_file import load_recipe
from fullfed.runs import run
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from runs.small import ROUNDS, recipe

BFLOAT16 = {"name": "dense", "precision": "bfloat16"}
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedavg in bfloat16": {"name": "fedavg", "codec": BFLOAT16},
    "ferret": {"name": "ferret", "coordinates": 300},
    "ferret on a budget": {"name": "ferret", "upload": "2KiB", "seeds": "shared"},
    "ferret as published": {"name": "ferret", "coordinates": 300, "basis": "normal"},
}


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_two_runs_of_one_recipe_are_equal(
    ingredients: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    for out in (tmp_path / "one", tmp_path / "two"):
        run.start(recipe(ingredients, method=method, federation={"rounds": 2}), out)
    one, two = (tmp_path / "one", tmp_path / "two")
    assert (one / "updates.log").read_bytes() == (two / "updates.log").read_bytes()
    assert summary(one)["model_hash"] == summary(two)["model_hash"]
    assert [r["loss"] for r in metrics(one)] == [r["loss"] for r in metrics(two)]
    assert summary(one)["loss"]["initial"] != summary(one)["loss"]["final"]


def test_another_seed_is_another_run(ingredients: Path, finished: Path, tmp_path: Path) -> None:
    other = run.start(recipe(ingredients, federation={"seed": 1}), tmp_path / "run")
    assert other["model_hash"] != summary(finished)["model_hash"]
    assert other["loss"]["initial"] == summary(finished)["loss"]["initial"]


def test_training_lowers_the_loss(ingredients: Path, finished: Path, tmp_path: Path) -> None:
    fedavg = run.start(recipe(ingredients, method={"name": "fedavg"}), tmp_path / "run")
    for loss in (fedavg["loss"], summary(finished)["loss"]):
        assert loss["final"] < loss["initial"]


def test_the_folder_holds_the_documented_files(finished: Path) -> None:
    files = {path.name for path in finished.iterdir()}
    assert files == {
        "recipe.toml",
        "updates.log",
        "base.json",
        "metrics.jsonl",
        "summary.json",
        "snapshot.safetensors",
        "account.json",
    }


def test_metrics_hold_one_object_a_round_with_the_documented_keys(finished: Path) -> None:
    records = metrics(finished)
    assert [record["round"] for record in records] == list(range(ROUNDS))
    for record in records:
        assert len(record["cohort"]) == 2
        assert record["aggregated"] == record["cohort"]
        assert record["refused"] == []
        assert math.isfinite(record["train_loss"])
        assert record["peak_memory_bytes"] > 1 << 20
        by_part = record["peak_memory_by_part"]
        assert set(by_part) == {"visit", "aggregate", "evaluate"}
        assert (by_part["evaluate"] is None) == (record["loss"] is None)
        assert record["peak_memory_bytes"] >= max(peak or 0 for peak in by_part.values())
        parts = {"train", "encode", "aggregate", "evaluate"}
        assert set(record["seconds"]) == {*parts, "elapsed"}
        assert all(seconds >= 0 for seconds in record["seconds"].values())
        assert record["seconds"]["elapsed"] > sum(record["seconds"][part] for part in parts)
        clients = [str(client) for client in record["cohort"]]
        for way in ("up", "down"):
            by_client = record["bytes"][f"{way}_by_client"]
            assert sorted(by_client) == sorted(clients)
            assert sum(by_client.values()) == record["bytes"][way]
    # Measured every second round.
    assert [record["loss"] is None for record in records] == [True, False, True, False]


def test_the_summary_holds_the_documented_keys(finished: Path) -> None:
    found, records = summary(finished), metrics(finished)
    assert found["method"] == "ferret"
    assert found["rounds"] == ROUNDS
    assert set(found["loss"]) == {"initial", "final"}
    assert found["loss"]["final"] == records[-1]["loss"]
    assert found["bytes"] == {w: sum(r["bytes"][w] for r in records) for w in ("up", "down")}
    assert set(found["seconds"]) == {"train", "encode", "aggregate", "evaluate", "total"}
    elapsed = sum(record["seconds"]["elapsed"] for record in records)
    assert found["seconds"]["total"] == pytest.approx(elapsed)
    assert found["peak_memory_bytes"] == max(r["peak_memory_bytes"] for r in records)
    assert found["peak_memory_by_part"] == {
        part: max((r["peak_memory_by_part"][part] or 0) for r in records) or None
        for part in ("visit", "aggregate", "evaluate")
    }
    assert found["model_hash"] == records[-1]["model_hash"]


def test_parameters_are_counted_as_the_checkpoint_holds_them(
    finished: Path, ingredients: Path
) -> None:
    from safetensors import safe_open

    with safe_open(ingredients / "model" / "model.safetensors", framework="np") as file:
        held = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    assert summary(finished)["parameters"] == held


def test_the_traffic_is_that_of_the_log_and_the_reports(finished: Path) -> None:
    """What a client downloads: its plan, and every update since it was last there."""
    sizes = [len(payload) for payload in read_log(finished / "updates.log")]
    version: dict[str, int] = {}
    for record in metrics(finished):
        assert record["bytes"]["update"] == sizes[record["round"]]
        for client, down in record["bytes"]["down_by_client"].items():
            missed = sum(sizes[version.get(client, 0) : record["round"]])
            assert 0 < down - missed < 300  # the plan
            version[client] = record["round"]
        for up in record["bytes"]["up_by_client"].values():
            assert 4 * 300 < up < 4 * 300 + 700  # the coordinates and a header


def test_every_method_needs_the_bytes_it_says(ingredients: Path, tmp_path: Path) -> None:
    up = {}
    for name, method in METHODS.items():
        result = run.start(
            recipe(ingredients, method=method, federation={"rounds": 1}), tmp_path / name
        )
        up[name] = result["bytes"]["up"]
        parameters = result["parameters"]
    assert up["fedavg"] == pytest.approx(2 * 4 * parameters, rel=0.1)
    assert up["fedavg in bfloat16"] == pytest.approx(2 * 2 * parameters, rel=0.15)
    assert up["ferret on a budget"] <= 2 * 2048
    assert up["ferret"] < up["fedavg"] / 10


def test_the_log_holds_the_updates(finished: Path) -> None:
    rounds = [decode(payload, Update).round for payload in read_log(finished / "updates.log")]
    assert rounds == list(range(ROUNDS))


def test_the_resolved_recipe_runs_again_and_spells_every_option_out(
    finished: Path, tmp_path: Path
) -> None:
    again = load_recipe(finished / "recipe.toml")
    assert again.method.options.keys() >= {"coordinates", "basis", "seeds", "server_step"}
    assert run.start(again, tmp_path / "again")["model_hash"] == summary(finished)["model_hash"]
    assert (tmp_path / "again" / "recipe.toml").read_bytes() == (
        finished / "recipe.toml"
    ).read_bytes()


def test_a_folder_with_a_run_in_it_is_left_alone(ingredients: Path, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(UserError, match="there is a run here already; resume it, or name another"):
        run.start(recipe(ingredients), finished)
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


def test_a_folder_with_anything_in_it_is_left_alone(ingredients: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="there is something here already; name a new folder"):
        run.start(recipe(ingredients), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made_is_an_error_in_one_sentence(
    ingredients: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        run.start(recipe(ingredients), tmp_path / "file" / "run")


class Recorder(Callback):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_run_begin(self, assembly: Any, version: int) -> None:
        self.told.append(f"begin {version}")

    def on_visit_end(self, round: int, arrival: Any) -> None:
        self.told.append(f"visit {round}")

    def on_round_end(self, record: dict[str, Any]) -> None:
        self.told.append(f"round {record['round']}")

    def on_run_end(self, summary: dict[str, Any]) -> None:
        self.told.append("end")


def test_callbacks_are_told_of_every_visit_and_round_in_order(
    ingredients: Path, tmp_path: Path
) -> None:
    recorders = [Recorder(), Recorder()]
    run.start(recipe(ingredients, federation={"rounds": 2}), tmp_path / "run", recorders)
    visits = [["visit 0"] * 2 + ["round 0"], ["visit 1"] * 2 + ["round 1"]]
    for recorder in recorders:
        assert recorder.told == ["begin 0", *visits[0], *visits[1], "end"]


def test_a_full_disk_ends_the_run_in_one_sentence_and_it_can_be_resumed(
    ingredients: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    real, calls = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > 12:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError, match="No space left on device"):
            run.start(recipe(ingredients), tmp_path / "run")
    assert run.resume(tmp_path / "run")["model_hash"] == summary(finished)["model_hash"]


def test_a_run_is_resumed_and_verified_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths given relative to one folder are found from another."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    lines = [
        json.dumps({"instruction": f"Say {n}.", "input": "", "output": str(n)}) for n in range(12)
    ]
    (home / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(home)
    tables = {
        "model": {"path": "builtin"},
        "data": {"train": "data.jsonl", "test_samples": 4, "partition": "iid", "clients": 2},
        "federation": {"rounds": 1, "clients_per_round": 1},
        "local": {"steps": 1},
        "method": {"name": "ferret", "coordinates": 16},
    }
    finished = run.start(parse_recipe(tables, "the test"), home / "run")
    monkeypatch.chdir(elsewhere)
    assert verify(RunFolder(home / "run")) > 0
    assert run.resume(home / "run")["model_hash"] == finished["model_hash"]


def test_a_client_that_fails_has_fetched_its_plan_and_is_left_out(
    ingredients: Path, finished: Path, tmp_path: Path
) -> None:
    failures = {"simulation": {"failures": 0.25}}
    run.start(recipe(ingredients, **failures), tmp_path / "run")
    records = metrics(tmp_path / "run")
    failed = [(r["round"], refusal["client"]) for r in records for refusal in r["refused"]]
    drawn = [
        (r["round"], client)
        for r in records
        for client in r["cohort"]
        if uniforms(Stream(0, Purpose.FAILURES, r["round"], client), 1)[0] < 0.25
    ]
    assert failed == drawn != []
    for record, whole in zip(records, metrics(finished), strict=True):
        assert record["cohort"] == whole["cohort"], "failures change nothing else"
        for client in set(record["cohort"]) - set(record["aggregated"]):
            assert record["bytes"]["up_by_client"][str(client)] == 0
            assert record["bytes"]["down_by_client"][str(client)] > 0
    assert verify(RunFolder(tmp_path / "run")) > 0


def test_a_round_does_not_read_the_lines_of_those_before_it(
    ingredients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line names the whole cohort: reading them all in every round would soon be all it does."""
    read: list[Path] = []
    real = RunFolder.lines

    def lines(folder: RunFolder) -> list[dict[str, Any]]:
        read.append(folder.path)
        return real(folder)

    monkeypatch.setattr(RunFolder, "lines", lines)
    for rounds in (2, 5):
        changes = {"rounds": rounds, "snapshot_every": 9}
        patience = {"every": 1, "patience": 5}
        ours = recipe(ingredients, federation=changes, evaluation=patience)
        run.start(ours, tmp_path / str(rounds))
    assert read.count(tmp_path / "2") == read.count(tmp_path / "5") > 0
