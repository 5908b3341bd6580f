"""docs/walkthrough.md names functions, types and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "walkthrough.md").read_text()
PACKAGE = ROOT / "src" / "fullfed"


def test_every_step_is_a_function_of_the_file_it_names() -> None:
    steps = re.findall(
        r"^\*\*(\d+)\. `([\w.]+)`\*\*(?:[^\n`]*\n?[^\n`]*)\(`([\w/.]+)`", PAGE, re.MULTILINE
    )
    steps += [
        (n, f, "methods/codecs/codec.py")
        for n, f in re.findall(r"^\*\*(\d+)\. `(Codec\.\w+)`", PAGE, re.MULTILINE)
    ]
    assert sorted({int(number) for number, _, _ in steps}) == list(range(1, 11))
    for _, function, file in steps:
        if not file.endswith(".py"):
            continue
        source = (PACKAGE / file).read_text()
        for name in function.split("."):
            assert re.search(rf"\b(?:def|class) {name}\b", source), f"{file} has no {name}"


def test_every_file_it_names_exists() -> None:
    named = re.findall(r"`((?!src/)(?:[a-z_]+/)+[a-z_]*(?:\.py)?|[a-z_]+\.py)`", PAGE)
    assert len(named) > 20
    for file in named:
        places = (PACKAGE / file, PACKAGE / "methods" / "codecs" / file)
        assert any(place.exists() for place in places), file


def test_it_is_read_in_five_minutes() -> None:
    assert len(PAGE.split()) < 1250
