"""docs/tutorial.md shows a recipe and data that go together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fullfed.recipe_file import load_recipe
from fullfed.runs.assembly import choose
from fullfed.runs.loading import read_data

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()


def shown(language: str) -> list[str]:
    """The page's code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, entered, with the tutorial's data and recipe."""
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, str(ROOT / "examples" / "hotels.py"), "hotels.jsonl"]
    subprocess.run(command, check=True)
    (recipe,) = shown("toml")
    (tmp_path / "hotels.toml").write_text(recipe)
    return tmp_path


def test_the_records_shown_are_among_those_made(made: Path) -> None:
    (records,) = shown("json")
    lines = (made / "hotels.jsonl").read_text().splitlines()
    assert lines[:3] == records.splitlines()
    assert Counter(json.loads(line)["hotel"] for line in lines).keys() == {
        *("Harbour Hotel", "Mill Hotel", "Tower Hotel")
    }


def test_the_recipe_makes_a_client_of_each_hotel(made: Path) -> None:
    recipe = load_recipe(made / "hotels.toml")
    choose(recipe)
    data = read_data(recipe)
    train, test, parts = data.train, data.test, data.parts
    assert (len(train), len(test), len(parts)) == (162, 18, 3)
    for part in parts:
        assert {train[n].category for n in part.indices} == {part.name}
    answers = {example.output for example in train}
    assert all(example.output in answers for example in test), "asked otherwise, and not unknown"
