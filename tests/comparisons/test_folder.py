"""Whose folder it is: the same comparison goes on in it, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fullfed.comparisons.folder import ComparisonFolder
from fullfed.comparisons.plan import contestants
from fullfed.comparisons.search import Trial
from fullfed.errors import UserError
from fullfed.runs.assembly import settled


def tables(rounds: int = 4, **compare: Any) -> dict[str, Any]:
    return {
        "model": {"path": "builtin"},
        "data": {"train": "builtin"},
        "federation": {"rounds": rounds, "clients_per_round": 2, "seed": 5},
        "method": {"name": "ferret", "coordinates": 64},
        "compare": compare,
    }


def accept(
    folder: ComparisonFolder, labels: list[str], rounds: int = 4, trials: int = 3, **compare: Any
) -> None:
    folder.accept(contestants(tables(rounds, **compare), labels, "the test"), trials, 2)


@pytest.fixture
def folder(tmp_path: Path) -> ComparisonFolder:
    folder = ComparisonFolder(tmp_path)
    accept(folder, ["fedavg", "ferret"])
    return folder


def test_it_gives_back_every_methods_recipe(folder: ComparisonFolder) -> None:
    for contestant in contestants(tables(), ["fedavg", "ferret"], "the test"):
        given_back = folder.recipe(contestant.label)
        assert given_back.data.date is not None  # that of the day the comparison began on
        assert given_back == settled(contestant.recipe, given_back.data.date)
    assert folder.budget() == (3, 2)


def test_a_runs_recipe_has_its_seed_and_the_best_rate(folder: ComparisonFolder) -> None:
    folder.write_trials("ferret", [Trial(0.3, 2.0), Trial(0.9, 1.5), Trial(3.0, None, "diverged")])
    assert [trial.learning_rate for trial in folder.trials("ferret")] == [0.3, 0.9, 3.0]
    recipe = folder.run_recipe("ferret", 7)
    assert (recipe.local.learning_rate, recipe.federation.seed) == (0.9, 7)
    assert recipe.method == folder.recipe("ferret").method
    assert folder.trials("fedavg") == []


def test_methods_may_be_added_and_left_out(folder: ComparisonFolder) -> None:
    accept(folder, ["fedavg", "x"], x={"method": {"name": "ferret", "coordinates": 8}})
    assert folder.recipe("x").method.options["coordinates"] == 8
    assert folder.recipe("ferret").method.options["coordinates"] == 64, "still known"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rounds": 5}, r"\(federation.rounds is 4 in it and 5 now\); name another folder"),
        ({"trials": 4}, r"\(search.trials is 3 in it and 4 now\)"),
        ({"fedavg": {"local": {"steps": 9}}}, r"\(methods.fedavg.local.steps is None in it and 9"),
    ],
)
def test_another_comparison_is_refused_and_changes_nothing(
    folder: ComparisonFolder, changes: dict[str, Any], expected: str
) -> None:
    before = folder.plan_file.read_bytes()
    with pytest.raises(UserError, match=expected):
        accept(folder, ["fedavg"], **changes)
    assert folder.plan_file.read_bytes() == before


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    folder = ComparisonFolder(tmp_path)
    with pytest.raises(UserError, match="there is something here already"), folder.held():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = ComparisonFolder(tmp_path / "file" / "comparison")
    with pytest.raises(UserError, match="the folder cannot be made"), folder.held():
        pass


def test_one_comparison_at_a_time(folder: ComparisonFolder) -> None:
    other = ComparisonFolder(folder.path)
    with folder.held(), pytest.raises(UserError, match="is at work here"), other.held():
        pass
    with other.held():
        pass


def test_a_comparison_that_was_stopped_before_its_plan_leaves_its_folder_usable(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        with ComparisonFolder(tmp_path).held():
            assert not ComparisonFolder(tmp_path).plan_file.exists()
