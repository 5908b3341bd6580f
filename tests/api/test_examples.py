"""Every public name has an example in its docstring, and each does what it shows."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fullfed
from api.conftest import PAGE, ROOT
from fullfed.methods.catalogue import AGGREGATIONS, CODECS, METHODS, TRAINERS
from pages.blocks import python_of

# ``run`` comes first: it makes the run that others show.
NAMES = sorted(fullfed.__all__, key=lambda name: (name != "run", name))


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """What an example registers goes with it."""
    tables = (METHODS, CODECS, AGGREGATIONS, TRAINERS)
    before = [set(table) for table in tables]
    yield
    for table, names in zip(tables, before, strict=True):
        for name in set(table) - names:
            del table[name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_the_example_in_the_docstring_does_what_it_shows(name: str, workplace: Path) -> None:
    text = inspect.getdoc(getattr(fullfed, name)) or ""
    test = doctest.DocTestParser().get_doctest(
        text, {"fullfed": fullfed, "Path": Path}, name, None, None
    )
    assert test.examples
    said: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not failed, "".join(said)


def test_the_page_does_what_it_shows(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one script, from top to bottom."""
    (workplace / "page").mkdir()
    (workplace / "page" / "first.toml").write_text((workplace / "first.toml").read_text())
    monkeypatch.chdir(workplace / "page")
    exec(python_of("docs/python.md"), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("<ferret, 2 rounds, loss 2.885 -> 2.805, 15.9 KiB up, ")
    assert lines[-1].startswith("runs/first: there is a run here already; resume it, ")
    assert Path("runs/first-compared/comparison.html").exists()


def test_the_page_on_trainers_does_what_it_shows(workplace: Path) -> None:
    names: dict[str, Any] = {}
    exec(python_of("docs/trainers.md"), names)
    assert len({*names["run"].losses}) == 3, "each round changed the model"


def test_the_names_on_other_pages_are_public() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*.py")):
        named = re.findall(r"(?<![\w/.-])fullfed\.(\w+)\(", page.read_text())
        assert set(named) <= set(fullfed.__all__), page


def test_every_name_of_the_page_is_public_and_the_page_has_all() -> None:
    table = PAGE[PAGE.index("## All names") :]
    assert set(re.findall(r"`(\w+)`", table)) >= set(fullfed.__all__)
    assert set(re.findall(r"fullfed\.(\w+)", PAGE)) <= set(fullfed.__all__)
