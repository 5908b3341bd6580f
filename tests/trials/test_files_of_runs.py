"""A small round of each trial on files; docs/results/trials.md has the large ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flower.real import write_ingredients as write_partners
from runs.small import write_ingredients
from trials import damage, kills, nodes
from trials.damage import REFUSED, SAME, Tally
from trials.subjects import models_in_memory, subject


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with models_in_memory():
        yield


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ingredients(tmp_path_factory.mktemp("ingredients"))


@pytest.mark.parametrize(
    ("name", "rounds", "share"), [("sketch", None, 0.4), ("residuals", 3, 0.2)]
)
def test_a_damaged_file_of_a_run_changes_nothing_unnoticed(
    ingredients: Path, tmp_path: Path, name: str, rounds: int | None, share: float
) -> None:
    tally = Tally()
    one = subject(name, ingredients, tmp_path, rounds)
    damage.damage_all(one, tmp_path, regions=2, seed=1, tally=tally, share=share)
    assert tally.faults == []
    assert tally.damages > 15
    for command in damage.COMMANDS:
        assert tally.counts[command, SAME] > 0
        assert tally.counts[command, REFUSED] > 0


def test_a_damaged_file_of_a_node_changes_nothing_unnoticed(tmp_path: Path) -> None:
    (tmp_path / "ingredients").mkdir()
    write_partners(tmp_path / "ingredients")
    tally = Tally()
    nodes.damage_all("residuals", tmp_path / "ingredients", tmp_path, 2, 1, tally, share=0.2)
    assert tally.faults == []
    assert tally.counts["answer", SAME] > 0
    assert tally.counts["answer", REFUSED] > 0


def test_a_run_that_crashes_anywhere_ends_as_it_would_have(
    ingredients: Path, tmp_path: Path
) -> None:
    seen = kills.Seen()
    for number in (7, 21, 40):
        kills.crash("moments", ingredients, tmp_path, number, seen)
    assert seen.faults == []
    assert seen.counts["crashes"] >= 5
    assert seen.counts["half-written file"] > 0


def test_torn_files_are_reached_and_mended(ingredients: Path, tmp_path: Path) -> None:
    """What the trial is for: each of these was there when a run was resumed."""
    seen = kills.Seen()
    for number in range(8, 60, 3):
        kills.crash("sketch", ingredients, tmp_path, number, seen)
        reached = {what for what, count in seen.counts.items() if count}
        if reached >= {"torn tail of the log", "torn line of metrics.jsonl"}:
            break
    assert seen.faults == []
    assert reached >= {"torn tail of the log", "torn line of metrics.jsonl"}
