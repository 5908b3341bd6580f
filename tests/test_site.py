"""The pages of the documentation are built, and whatever they name is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site/reference/index.html").read_text()
    assert "the path of a TOML file" in reference, "docstrings are in it"
    pages = {page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")}
    built = {page.parent for page in (tmp_path / "site").rglob("index.html")}
    for page in pages - {Path("index.md")}:
        assert tmp_path / "site" / page.with_suffix("") in built, page
