"""Runs of data in several places: relative paths hold anywhere, and moved data are found again."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fullfed.config import Recipe, parse_recipe
from fullfed.errors import UserError
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from runs.small import tables
from runs.test_resume import stop_after

COLOURS = ("red", "green", "blue")


@pytest.fixture
def here(ingredients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a file, a linked one, and a folder, of a colour each."""
    folder = tmp_path / "here"
    (folder / "deep").mkdir(parents=True)
    records = [json.loads(line) for line in (ingredients / "train.jsonl").open()]
    red, green, blue = ([r for r in records if r["category"] == c] for c in COLOURS)
    (folder / "red.jsonl").write_text("\n".join(map(json.dumps, red)))
    (tmp_path / "blob").write_text("\n".join(map(json.dumps, green)))
    (folder / "green.jsonl").symlink_to(tmp_path / "blob")
    renamed = [{"q": r["instruction"], "a": r["output"], "n": 1} for r in blue]
    (folder / "deep/a.jsonl").write_text("\n".join(map(json.dumps, renamed[:4])))
    (folder / "deep/b.json").write_text(json.dumps({"data": renamed[4:]}))
    monkeypatch.chdir(folder)
    return folder


def recipe(ingredients: Path, **data: Any) -> Recipe:
    changed = tables(ingredients)
    changed["federation"]["clients_per_round"] = 1
    changed["data"] = {"template": "alpaca", "test_samples": 4, **data}
    return parse_recipe(changed, "the test")


SOURCES = [
    {"name": "red", "path": "red.jsonl"},
    {"name": "green", "path": "gr*.jsonl"},
    {
        "name": "blue",
        "path": "deep",
        "columns": {"prompt": "q", "completion": "a"},
        "ignore": ["n"],
    },
]


def moved(out: Path, *changes: tuple[str, str, Any]) -> None:
    """Change keys of the sources of a run's recipe."""
    found = tomllib.loads((out / "recipe.toml").read_text())
    by_name = {source["name"]: source for source in found["data"]["sources"]}
    for name, key, value in changes:
        by_name[name][key] = value
    (out / "recipe.toml").write_text(tomli_w.dumps(found))


def begin_again(out: Path) -> None:
    """Leave the folder as after one round, without a snapshot."""
    stop_after(out, 1)
    (out / "snapshot.safetensors").unlink()


def test_a_run_finds_its_sources_from_anywhere_and_where_they_move(
    here: Path, ingredients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    settings = {"sources": SOURCES, "partition": "source", "clients_per_source": 2}
    run.start(recipe(ingredients, **settings), out)
    log = (out / "updates.log").read_bytes()
    monkeypatch.chdir("/")
    kept = [s.path for s in RunFolder(out).recipe().data.sources or ()]
    assert kept == [str(here / "red.jsonl"), str(here / "gr*.jsonl"), str(here / "deep")]
    begin_again(out)
    shutil.move(here, tmp_path / "there")
    with pytest.raises(UserError, match=r"here/red\.jsonl does not exist"):
        run.resume(out)
    there = tmp_path / "there"
    paths = {"red": "red.jsonl", "green": "green.jsonl", "blue": "deep/*"}
    moved(out, *((name, "path", str(there / path)) for name, path in paths.items()))
    run.resume(out)
    assert (out / "updates.log").read_bytes() == log
    verify(RunFolder(out))
    (there / "red.jsonl").write_text((there / "red.jsonl").read_text().replace("red", "pink"))
    begin_again(out)
    with pytest.raises(UserError, match=r"there/red\.jsonl, .*: training or test data are not"):
        run.resume(out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("red", "name", "rot"), r"data\.sources\.red\.name was 'red' and is not there"),
        (("blue", "ignore", []), r"data\.sources\.blue\.ignore was \['n'\] and is \[\]"),
        (
            ("blue", "columns", {"prompt": "a", "completion": "a"}),
            r"data\.sources\.blue\.columns\.prompt was 'q' and is 'a'",
        ),
    ],
)
def test_what_is_said_of_a_source_is_bound(
    here: Path, ingredients: Path, tmp_path: Path, change: tuple[str, str, Any], said: str
) -> None:
    out = tmp_path / "run"
    run.start(recipe(ingredients, sources=SOURCES, partition="source"), out)
    moved(out, change)
    with pytest.raises(UserError, match=said):
        RunFolder(out).recipe()


def test_a_linked_file_keeps_its_name(here: Path, ingredients: Path, tmp_path: Path) -> None:
    """The link leads to a file with another name, and no ending that says its form."""
    out, pattern = tmp_path / "run", tmp_path / "pattern"
    settings = {"train": "green.jsonl", "test": "red.jsonl", "partition": "file"}
    run.start(recipe(ingredients, **settings), out)
    run.start(recipe(ingredients, **{**settings, "train": "gr*"}), pattern)
    for folder in (out, pattern):
        begin_again(folder)
        run.resume(folder)
    assert (out / "updates.log").read_bytes() == (pattern / "updates.log").read_bytes()
