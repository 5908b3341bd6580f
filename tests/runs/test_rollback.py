"""A run that is taken back, and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fullfed.cli import app
from fullfed.errors import UserError
from fullfed.federation.log import Log, read_log
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from fullfed.runs.rollback import roll_back
from runs.cycling import small


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_a_run_that_was_taken_back_holds_and_goes_on_to_the_same_end(
    finished: Path, copied: Path, version: int
) -> None:
    folder, whole = RunFolder(copied), RunFolder(finished)
    roll_back(folder, version, "to try it")
    assert list(read_log(folder.log_file)) == list(read_log(whole.log_file))[:version]
    assert [r["round"] for r in folder.metrics()] == list(range(version))
    assert not folder.summary_file.exists()
    verify(folder)
    run.resume(copied)
    verify(folder)
    assert folder.log_file.read_bytes() == whole.log_file.read_bytes()
    assert folder.summary()["model_hash"] == whole.summary()["model_hash"]
    assert folder.summary()["bytes"] == whole.summary()["bytes"]


def test_what_was_cut_is_kept_with_who_when_and_why(finished: Path, copied: Path) -> None:
    result = CliRunner().invoke(app, ["rollback", str(copied), "2", "--why", "client 3 lied"])
    assert result.exit_code == 0, result.output
    [record] = json.loads((copied / "rollbacks.json").read_text())["rollbacks"]
    assert (record["version"], record["from"], record["why"]) == (2, 4, "client 3 lied")
    assert record["who"]
    assert record["when"].startswith("20")
    whole = RunFolder(finished)
    assert record["metrics"] == whole.metrics()[2:]
    left, cut = (copied / "updates.log").read_bytes(), (copied / record["cut"]).read_bytes()
    assert left + cut == whole.log_file.read_bytes()


def test_rollbacks_follow_one_another(copied: Path) -> None:
    folder = RunFolder(copied)
    roll_back(folder, 3)
    roll_back(folder, 1)
    records = json.loads(folder.rollbacks_file.read_bytes())["rollbacks"]
    assert [record["version"] for record in records] == [3, 1]
    assert len({record["cut"] for record in records}) == 2
    run.resume(copied)
    verify(folder)


@pytest.mark.parametrize(
    ("version", "reason"),
    [(4, "is at version 4 and cannot go back to 4"), (-1, "cannot go back to -1")],
)
def test_a_version_that_is_not_behind_is_refused(copied: Path, version: int, reason: str) -> None:
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=reason):
        roll_back(RunFolder(copied), version)
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()} == before


def test_a_run_that_is_carried_on_now_is_not_taken_back(copied: Path) -> None:
    with Log(copied / "updates.log"), pytest.raises(UserError, match="another process is writing"):
        roll_back(RunFolder(copied), 1)
    assert not (copied / "rollbacks.json").exists()


def test_states_of_later_rounds_go_and_the_run_goes_on(ingredients: Path, tmp_path: Path) -> None:
    """One round back every client's state is the one from before, and so the end is the same."""
    out = tmp_path / "run"
    run.start(small(ingredients), out)
    log = (out / "updates.log").read_bytes()
    states = {p.relative_to(out): p.read_bytes() for p in out.glob("states/*/*.safetensors")}
    roll_back(RunFolder(out), 3)
    assert not list(out.glob("states/*/*.3.safetensors"))
    run.resume(out)
    assert (out / "updates.log").read_bytes() == log
    ended = {p.relative_to(out): p.read_bytes() for p in out.glob("states/*/*.safetensors")}
    assert ended == states


def test_states_that_a_rollback_lost_are_not_missed(ingredients: Path, tmp_path: Path) -> None:
    """Two states of a client are kept, so that after a longer way back some begin anew."""
    out = tmp_path / "run"
    run.start(small(ingredients), out)
    roll_back(RunFolder(out), 1)
    run.resume(out)
    verify(RunFolder(out))
    next(out.glob("states/*/index.json")).write_text("{}")
    with pytest.raises(UserError, match=r"index\.json: this is not what the run wrote"):
        run.resume(out)


@pytest.mark.parametrize("step", ["cut", "rewrite_metrics", "forget"])
def test_a_rollback_that_is_interrupted_leaves_a_run_that_goes_on(
    finished: Path, copied: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for owner in (
            "federation.log.Log",
            "runs.folder.RunFolder",
            "federation.states.StatesOnDisk",
        ):
            patch.setattr(f"fullfed.{owner}.{step}", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            roll_back(RunFolder(copied), 1)
    run.resume(copied)
    verify(RunFolder(copied))
    assert (copied / "updates.log").read_bytes() == (finished / "updates.log").read_bytes()
