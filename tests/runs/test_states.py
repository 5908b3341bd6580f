"""kill -9 with clients that keep states: what is resumed is the run that was never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from fullfed.runs import run
from runs.cycling import go_until_replacement, small
from runs.test_resume import assert_same_run, killed


@pytest.fixture(scope="module")
def whole(ingredients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("states") / "run"
    run.start(small(ingredients), out)
    return out


def test_states_survive_a_kill_after_any_file_is_written(
    ingredients: Path, whole: Path, tmp_path: Path
) -> None:
    """A visit's state, the account, the snapshot, the states of the next visits, ..."""
    out, number = tmp_path / "run", 3
    while killed(go_until_replacement, ingredients, out, number):
        number += 1
        assert number < 30
    assert number > 5
    assert_same_run(out, whole)
    kept, expected = (sorted(p.relative_to(o) for p in o.glob("states/*/*")) for o in (out, whole))
    assert kept == expected
    assert kept
