"""The code that docs/adding-a-method.md shows is the code there is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "adding-a-method.md").read_text()
BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_every_excerpt_is_a_part_of_its_file() -> None:
    excerpts = BLOCK.findall(GUIDE)
    assert len(excerpts) == GUIDE.count("```python") == 5
    for file, excerpt in excerpts:
        assert excerpt in (ROOT / file).read_text(), f"{file} has no such part:\n{excerpt}"


def test_every_class_in_its_table_exists() -> None:
    named = re.findall(r"`(\w+)\.([A-Z]\w+)`", GUIDE)
    assert len(named) > 10
    for module, name in named:
        source = (ROOT / "src" / "fullfed" / "methods" / f"{module}.py").read_text()
        assert f"class {name}" in source, f"{module}.py has no {name}"
