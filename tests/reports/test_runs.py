"""The names of runs in a plot."""

from __future__ import annotations

from pathlib import Path

import pytest

from fullfed.reports.runs import plot_runs, told_apart
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from runs.small import recipe, write_ingredients


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["a/seed-0", "b/seed-0"], ["a/seed-0", "b/seed-0"]),
        (["a/x/seed-0", "b/x/seed-0", "b/x/seed-1"], ["a/x/seed-0", "b/x/seed-0", "b/x/seed-1"]),
        (["runs/a", "./runs/a", "runs/b/../a"], ["a"]),
    ],
)
def test_runs_are_told_apart_by_as_much_of_their_paths_as_it_takes(
    tmp_path: Path, paths: list[str], names: list[str]
) -> None:
    found = told_apart([tmp_path / path for path in paths])
    assert list(found) == names
    assert found[names[0]] == (tmp_path / paths[0]).resolve()


def test_a_run_with_one_name_is_drawn_once_and_two_are_drawn_twice(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    small = recipe(write_ingredients(tmp_path), federation={"rounds": 1})
    for folder in ("a", "b"):
        run.start(small, tmp_path / folder / "seed-0")
    paths = told_apart([tmp_path / "a" / "seed-0", tmp_path / "b" / "seed-0"])
    drawn = plot_runs({name: RunFolder(path) for name, path in paths.items()}, tmp_path / "plots")
    assert [path.name for path in drawn] == ["loss-against-rounds.png", "loss-against-bytes.png"]
    assert len(paths) == 2
