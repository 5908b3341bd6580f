"""The code that docs/adding-a-method.md shows is the code there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from fullfed.runs.loading import load_model

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "adding-a-method.md").read_text()
BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_every_excerpt_is_a_part_of_its_file() -> None:
    excerpts = BLOCK.findall(GUIDE)
    assert len(excerpts) == GUIDE.count("```python") == 6
    for file, excerpt in excerpts:
        assert excerpt in (ROOT / file).read_text(), f"{file} has no such part:\n{excerpt}"


def test_every_class_in_its_table_exists() -> None:
    named = re.findall(r"`(\w+)\.([A-Z]\w+)`", GUIDE)
    assert len(named) > 10
    methods = ROOT / "src" / "fullfed" / "methods"
    for module, name in named:
        sources = [p.read_text() for p in methods.rglob(f"{module}.py")]
        assert any(f"class {name}" in source for source in sources), f"{module}.py has no {name}"


def test_a_codec_a_rule_and_a_method_from_outside_work_together(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "extension.py"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["method"] == "matrices"
    assert summary["loss"]["final"] < summary["loss"]["initial"]
    parameters = sum(p.numel() for p in load_model("builtin")[0].parameters() if p.ndim == 2)
    reports = 2 * 3  # rounds, clients a round
    assert 2 * parameters < summary["bytes"]["up"] / reports < 2.02 * parameters, "float16"
