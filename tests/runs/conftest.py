"""One finished run, for tests that only read it, what it takes to make another, and a terminal."""

from __future__ import annotations

import builtins
import io
import shutil
import sys
from pathlib import Path

import pytest

from fullfed.runs import run
from runs.small import recipe, write_ingredients


@pytest.fixture(scope="session")
def ingredients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ and train.jsonl."""
    return write_ingredients(tmp_path_factory.mktemp("ingredients"))


@pytest.fixture(scope="session")
def finished(ingredients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of Ferret that nobody changes."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run.start(recipe(ingredients), out)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same run in a folder that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is typed in a terminal, line by line, and then Ctrl-D."""
    lines: list[str] = []

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def read(prompt: str) -> str:
        print(prompt, end="")
        if not lines:
            raise EOFError
        print(lines[0])
        return lines.pop(0)

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(builtins, "input", read)
    return lines
