"""Every command, the way a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest
import tomli_w
from typer.testing import CliRunner, Result

from fullfed import headway, quickstart
from fullfed.cli import app
from fullfed.config import Recipe
from fullfed.runs import progress
from fullfed.runs.progress import RoundLines
from fullfed.sketch.compilation import compilation
from runs.small import recipe, tables, write_data, write_model

FULLFED = Path(sys.executable).with_name("fullfed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe whose paths begin with an environment variable."""
    folder = tmp_path_factory.mktemp("folder")
    write_model(folder / "model")
    write_data(folder / "train.jsonl")
    text = tomli_w.dumps(tables(folder)).replace(str(folder / "model"), "$FULLFED_TEST/model")
    text = text.replace(str(folder / "train.jsonl"), "${FULLFED_TEST}/train.jsonl")
    (folder / "recipe.toml").write_text(text)
    return folder


def invoke(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def done(folder: Path) -> Path:
    """A run by the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FULLFED_TEST", str(folder))
        invoke("run", folder / "recipe.toml", "--set", "federation.rounds=2", "--out", folder / "r")
    return folder / "r"


def test_run_prints_plain_lines_where_there_is_no_terminal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULLFED_TEST", str(folder))
    monkeypatch.setenv("COLUMNS", "200")
    text = invoke("run", folder / "recipe.toml", "--out", tmp_path / "run").output
    lines = text.splitlines()
    assert "4 clients, 2 a round" in lines[0]
    rounds = [line for line in lines if line.startswith("round ")]
    assert [line.split("  ")[0] for line in rounds] == [f"round {n}/4" for n in range(1, 5)]
    assert all("train loss" in line and "up" in line and "down" in line for line in rounds)
    assert "loss" in text
    assert "\x1b[" not in text, "no escape codes in a file"


def test_where_there_is_no_terminal_a_long_visit_says_how_far_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULLFED_TEST", str(folder))
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)  # everything takes long
    short = ("--set", "federation.rounds=1", "--out", tmp_path / "run")
    lines = invoke("run", folder / "recipe.toml", *short).output.splitlines()
    steps = [line.split("  ")[2] for line in lines if "  step " in line and "up" not in line]
    assert steps == ["step 0/2", "step 1/2", "step 2/2"] * 2
    assert all("tokens/s" in line for line in lines if "step 1/2" in line or "step 2/2" in line)
    assert lines[1].startswith("base model  evaluating, sample 0/8"), "before anything is measured"
    monkeypatch.setattr(headway, "QUIET_SECONDS", 0.0)
    words = ("--set", "evaluation.metrics=['exact_match']", "--set", "evaluation.max_new_tokens=3")
    measured = invoke("evaluate", folder / "model", folder / "recipe.toml", *words)
    lines = [line for line in measured.stderr.splitlines() if "answer" in line]
    assert lines[0] == "evaluating, answer 0/8"
    assert len(lines) > 1


def test_set_changes_the_recipe_and_the_run_keeps_what_it_was_given(done: Path) -> None:
    assert json.loads((done / "summary.json").read_text())["rounds"] == 2
    text = (done / "recipe.toml").read_text()
    assert "rounds = 2" in text
    assert "$" not in text, "variables are expanded, so that resuming needs none"


def test_the_method_can_be_changed_without_its_options(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULLFED_TEST", str(folder))
    options = ["--set", "method.name=fedavg", "--set", "federation.rounds=1"]
    invoke("run", folder / "recipe.toml", *options, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["method"] == "fedavg"


def test_without_out_a_run_finds_a_folder_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULLFED_TEST", str(folder))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        invoke("run", folder / "recipe.toml", "--set", "federation.rounds=1")
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == ["recipe", "recipe-2"]


def test_verify_says_how_many_hashes_are_equal(done: Path) -> None:
    assert "verified, 3 hashes equal" in invoke("verify", done).output


def test_resume_of_a_finished_run_shows_it_again(done: Path) -> None:
    before = (done / "updates.log").read_bytes()
    assert "going on after round 2" in invoke("resume", done).output
    assert (done / "updates.log").read_bytes() == before


def test_evaluate_and_export(
    folder: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULLFED_TEST", str(folder))
    invoke("export", done, tmp_path / "model")
    final = json.loads((done / "summary.json").read_text())["loss"]["final"]
    for model in (done, tmp_path / "model"):
        assert f"{final:.4f}" in invoke("evaluate", model, folder / "recipe.toml").output


def test_methods_names_every_method_and_its_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    text = invoke("methods").output
    for expected in ("fedavg", "1602.05629", "ferret", "2409.06277", "coordinates", "server_step"):
        assert expected in text


def test_pictures_and_events_are_written_where_the_extras_are_installed(done: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("tensorboard")
    assert len(list(done.glob("loss-against-*.png"))) == 2
    assert list((done / "tensorboard").glob("events.out.tfevents.*"))


def test_the_entry_point(folder: Path, tmp_path: Path) -> None:
    """Once through the installed script, with what a shell sees: output, errors, exit codes."""
    environment = {**os.environ, "FULLFED_TEST": str(folder)}
    command = [FULLFED, "run", folder / "recipe.toml", "--set", "federation.rounds=1"]

    def shell(*more: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], env=environment, capture_output=True, text=True, check=False
        )

    good = shell("--out", tmp_path / "run")
    assert (good.returncode, good.stderr) == (0, "")
    assert "round 1/1" in good.stdout
    bad = shell("--set", "federation.ronds=1", "--out", tmp_path / "other")
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: ")
    assert bad.stderr.count("\n") == 1
    assert bad.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_quickstart_that_was_stopped_is_carried_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {"fedavg": {"name": "fedavg"}, "ferret": {"name": "ferret", "coordinates": 300}}
    federation = {"rounds": 2, "snapshot_every": 1}

    def small(method: str) -> Recipe:
        return recipe(folder, method=methods[method], federation=federation)

    monkeypatch.setattr(quickstart, "quickstart_recipe", small)
    monkeypatch.chdir(tmp_path)
    stopped = []

    def stop(self: RoundLines, record: dict[str, Any]) -> None:
        stopped.append(record["round"])
        if len(stopped) == 3:  # the first round of the second method
            raise KeyboardInterrupt

    monkeypatch.setattr(RoundLines, "on_round_end", stop)
    monkeypatch.setattr(sys, "argv", ["fullfed", "quickstart"])
    interrupted = CliRunner().invoke(app, ["quickstart"])
    assert interrupted.exit_code == 130
    assert "stopped; carry on with: fullfed quickstart" in interrupted.output
    invoke("quickstart")
    assert stopped == [0, 1, 0, 1], "no round is carried out twice"
    assert [path.name for path in Path("runs").iterdir()] == ["quickstart"]
    invoke("quickstart")
    assert {path.name for path in Path("runs").iterdir()} == {"quickstart", "quickstart-2"}


def test_compiling_is_told_once_and_only_where_there_is_something_to_compile() -> None:
    kernel, told = numba.njit(lambda x: x + 1), list[str]()
    for number in (1, 2.0, 2):
        with compilation(lambda: told.append("compiling")):
            kernel(number)
            kernel(number)
    assert told == ["compiling"] * 2  # for the integer, and for the float
