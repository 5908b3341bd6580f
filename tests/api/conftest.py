"""Where the examples of docstrings and of docs/python.md run: in a folder with a small recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from comparisons import inline
from fullfed.comparisons import comparison

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, entered, with first.toml as docs/python.md shows it; no comparison starts others'
    processes."""
    folder = tmp_path_factory.mktemp("work")
    (recipe,) = re.findall(r"^```toml\n(# first\.toml\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (folder / "first.toml").write_text(recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(comparison, "carry_out", inline.carry_out)
        yield folder
