"""README.md and the pages under docs/ point at what there is: pages, headings, files, commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import typer
from click import Group

from fullfed.cli import app
from fullfed.config_data import DataTable
from fullfed.data.record_files import COMPRESSIONS, FORMS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("src", "tests", "benchmarks", "examples", "scripts")
FILES = [f"/{p.relative_to(ROOT).as_posix()}" for d in FOLDERS for p in (ROOT / d).rglob("*.py")]

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text().lower(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().replace(" ", "-") for heading in headings}


def shell(text: str) -> str:
    """What a page shows in code that is not said to be of some other language."""
    plain = re.sub(r"^```\w+\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^(?: {4,}.*|```\n(?:.*\n)*?```)$", plain, re.MULTILINE)
    return "\n".join([*blocks, *re.findall(r"`([^`]+)`", plain)])


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_python_files_exist(page: Path) -> None:
    for name in re.findall(r"(?<![\w./-])((?:\w+/)*\w+\.py)\b", page.read_text()):
        assert any(file.endswith(f"/{name}") for file in FILES), name


@each_page
def test_commands_exist(page: Path) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, Group)
    for name, further in re.findall(
        r"(?:\bfullfed +|`fullfed\n)([a-z][\w-]*)(?: +([a-z]+))?", shell(page.read_text())
    ):
        assert name in group.commands, name
        command = group.commands[name]
        if isinstance(command, Group) and further:
            assert further in command.commands, f"{name} {further}"


def test_what_the_threat_model_claims_is_shown_by_tests_that_there_are() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    files = (ROOT / "tests").rglob("test_*.py")
    there = {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert len(named) > 10
    assert named <= there, named - there
    notes = {int(number) for number in re.findall(r"\((\d+)\)", text)}
    assert notes == set(range(1, max(notes) + 1))


def test_the_guide_has_every_form_of_data_and_every_partition() -> None:
    _, _, text = (ROOT / "docs" / "guide.md").read_text().partition("\n## Data\n")
    section = text.partition("\n## ")[0]
    partitions = get_args(DataTable.model_fields["partition"].annotation)
    for name in (*FORMS, *COMPRESSIONS, *partitions):
        assert f"`{name}`" in section, name
    tables = [
        tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    ]
    assert [DataTable.model_validate(table["data"]).partition for table in tables] == [
        "task",
        "source",
    ]


def test_the_commands_of_the_readme_are_seen() -> None:
    found = set(re.findall(r"\bfullfed +([a-z]+)", shell((ROOT / "README.md").read_text())))
    assert {"run", "resume", "verify", "export", "compare", "simulate"} <= found
