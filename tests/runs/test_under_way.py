"""Runs whose visits last longer than a round: stopped and resumed, taken back, refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fullfed.config import Recipe
from fullfed.errors import UserError
from fullfed.federation.client import Worker
from fullfed.methods.buffered import BufferedArrivals
from fullfed.recipe_file import load_recipe
from fullfed.runs import run
from fullfed.runs.assembly import assemble_server
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from fullfed.runs.rollback import roll_back
from runs.small import recipe
from runs.test_resume import TIMED
from trials.subjects import StopAfter, StopError

ROUNDS = 7
COURSE = BufferedArrivals(seed=0, clients=4, at_once=3, buffer=2)
CODECS: dict[str, dict[str, Any]] = {
    "changes": {"name": "dense"},
    "residuals": {"name": "topk", "upload": 1605, "error_feedback": True},
    "own directions": {"name": "sketch", "coordinates": 300, "bits": 1},
    "shared directions": {"name": "sketch", "coordinates": 300, "seeds": "shared"},
}


def buffered(ingredients: Path, codec: str, **changes: Mapping[str, Any]) -> Recipe:
    """Three of four clients train at once, two reports fill the buffer."""
    federation = {"rounds": ROUNDS, "clients_per_round": 3, "snapshot_every": 2}
    federation |= dict(changes.pop("federation", {}))
    method = {"name": "fedbuff", "buffer": 2, "codec": CODECS[codec]}
    return recipe(ingredients, federation=federation, method=method, **changes)  # type: ignore[arg-type]


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in folder.metrics()]


def test_the_course_of_these_runs_has_visits_of_several_rounds() -> None:
    """Or the tests below would show nothing."""
    ages = [r - int(p["version"]) for r in range(ROUNDS) for p in COURSE.visits(r).values()]  # type: ignore[call-overload]
    assert max(ages) >= 2
    assert all(COURSE.ahead(version) for version in range(ROUNDS))


@pytest.fixture(scope="module")
def whole(ingredients: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that was never stopped, and that nobody changes."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    run.start(buffered(ingredients, "residuals"), folder.path)
    return folder


@pytest.mark.parametrize("codec", CODECS)
def test_a_stopped_and_resumed_run_is_the_same(
    codec: str, ingredients: Path, tmp_path: Path
) -> None:
    ours = buffered(ingredients, codec, simulation={"failures": 0.2})
    whole, again = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "again")
    run.start(ours, whole.path)
    with suppress(StopError):
        run.start(ours, again.path, [StopAfter(3)])
    with suppress(StopError):
        run.resume(again.path, [StopAfter(4)])
    run.resume(again.path)
    assert again.log_file.read_bytes() == whole.log_file.read_bytes()
    assert lines(again) == lines(whole)
    assert any(line["refused"] for line in lines(whole)), "some visits failed"
    assert verify(again)


def test_a_run_that_was_taken_back_goes_on_to_the_same_end(
    whole: RunFolder, tmp_path: Path
) -> None:
    folder = RunFolder(Path(shutil.copytree(whole.path, tmp_path / "copied")))
    roll_back(folder, 5)
    run.resume(folder.path)
    assert lines(folder)[:5] == lines(whole)[:5]
    assert verify(folder)


def test_changes_of_a_run_that_was_taken_back_are_the_same(
    ingredients: Path, tmp_path: Path
) -> None:
    """Where clients keep nothing, the whole run is."""
    folder = RunFolder(tmp_path / "run")
    run.start(buffered(ingredients, "changes"), folder.path)
    before, known = folder.log_file.read_bytes(), lines(folder)
    roll_back(folder, 4)
    run.resume(folder.path)
    assert folder.log_file.read_bytes() == before
    assert lines(folder) == known


def test_a_finished_run_makes_no_visit_again(whole: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(Path(shutil.copytree(whole.path, tmp_path / "copied")))
    with mock.patch.object(Worker, "visit", side_effect=AssertionError):
        run.resume(folder.path)
    assert lines(folder) == lines(whole)


def test_more_rounds_go_on_with_what_was_under_way(
    whole: RunFolder, ingredients: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    run.start(buffered(ingredients, "residuals", federation={"rounds": 4}), folder.path)
    folder.write_recipe(load_recipe(folder.recipe_file, [f"federation.rounds={ROUNDS}"]))
    run.resume(folder.path)
    assert folder.log_file.read_bytes() == whole.log_file.read_bytes()
    assert [line["bytes"] for line in lines(folder)] == [line["bytes"] for line in lines(whole)]


def test_a_federation_of_nodes_refuses_it(ingredients: Path) -> None:
    with pytest.raises(UserError, match=r"method\.name: in fedbuff clients begin and end by"):
        assemble_server(buffered(ingredients, "changes"), 4)
