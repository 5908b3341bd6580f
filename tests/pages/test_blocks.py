"""Every code block of README.md, the tutorials and the how-to pages is carried out, or marked.

Python is carried out. Commands are held against the command line's own parser, and what they name
against what there is; TOML, JSON and YAML are read by what reads them. A block that is not to be
carried out so says why (``pages.blocks``).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
import yaml

from fullfed.errors import UserError
from pages.blocks import MARKS, ROOT, Block, blocks_in, blocks_of, pages, python_of
from pages.commands import commands_in, fault_of
from pages.tables import BASE, check_toml

# Where tests carry out all blocks of a page that are in a language, and more is held against them.
ELSEWHERE = {
    ("docs/python.md", "python"): "tests/api/test_examples.py",
    ("docs/trainers.md", "python"): "tests/api/test_examples.py",
    ("docs/adding-a-method.md", "python"): "tests/methods/test_guide.py",
    ("docs/three-organisations.md", "sh"): "tests/flower/test_three_organisations.py",
}
BLOCKS = [block for page in pages() for block in blocks_of(page)]
PAGES_OF_PYTHON = [p for p in pages() if python_of(p) and (p, "python") not in ELSEWHERE]


def check(block: Block) -> None:
    """See that a block, other than Python, is what it should be; AssertionError or another."""
    if block.language == "toml":
        check_toml(block.text)
    elif block.language == "json":
        assert all(json.loads(line) for line in block.text.splitlines())
    elif block.language == "yaml":
        assert isinstance(yaml.safe_load(block.text), dict)
    else:
        assert block.language == "sh", f"{block}: no test carries out {block.language}"
        for command in commands_in(block.text):
            assert not (fault := fault_of(command)), f"{block}: {' '.join(command)}: {fault}"


def is_carried_out_elsewhere(block: Block) -> bool:
    return (block.page, block.language) in ELSEWHERE


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_what_it_should_be_or_marked(block: Block) -> None:
    assert block.mark in (*MARKS, "")
    if not block.mark and block.language != "python" and not is_carried_out_elsewhere(block):
        check(block)


@pytest.mark.parametrize(("page", "language"), ELSEWHERE)
def test_another_test_carries_these_out(page: str, language: str) -> None:
    assert Path(page).name in (ROOT / ELSEWHERE[page, language]).read_text()
    assert any(block.language == language for block in blocks_of(page))


def given() -> dict[str, Any]:
    """What the Python of pages takes for granted: records, and a model before and after."""
    requests = [{"instruction": f"Say {n}.", "output": f"{n}"} for n in range(8)]
    before, after = [torch.zeros(99, 99)], [torch.ones(99, 99)]
    named = {"north": requests, "south": requests, "test": requests}
    return {"__name__": "page", **named, "before": before, "after": after, "weights": before}


@pytest.mark.parametrize("page", PAGES_OF_PYTHON)
def test_its_python_does_what_it_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every recipe that it names is a small one."""
    monkeypatch.chdir(tmp_path)
    code = python_of(page)
    small = {"local": {"steps": 1, "learning_rate": 0.1}, "evaluation": {"every": 99}}
    for name in re.findall(r'"([\w/-]+\.toml)"', code):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(tomli_w.dumps(BASE | small))
    exec(compile(code, page, "exec"), given())


FAULTS = {
    "    fullfed run r.toml --sett a=1\n": "No such option '--sett'",
    "    fullfed rollback runs/a\n": "Missing argument",
    "    fullfed chatt runs/a\n": "there is no command chatt",
    "```sh\nfullfed federation keys rotate\n```\n": "Missing argument",
    "    make all-of-it\n": "there is no target all-of-it",
    "    python benchmarks/preflight.py r.toml --fast\n": "has no --fast",
    "    pip install 'fullfed[everything]'\n": "there is no extra everything",
    "    ssh-keygen -t ecdsa\n": "no test knows this command",
    "```toml\n[local]\nstep = 3\n```\n": "local.step",
    "```toml\n[limits]\nmost = 3\n```\n": "neither a recipe nor a file",
    "```toml\n[codec]\nname = 'topk'\nupload = 3\nsize = 1\n```\n": "there is no key 'codec.size'",
    "```rust\nfn main() {}\n```\n": "no test carries out rust",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_new_block_that_is_wrong_is_found(text: str) -> None:
    (block,) = blocks_in(f"Words.\n\n{text}\nMore words.\n", "page.md")
    assert (block.line, block.mark) == (3 + text.startswith("```"), "")
    with pytest.raises((AssertionError, ValueError, UserError), match=re.escape(FAULTS[text])):
        check(block)


def test_a_mark_stands_before_its_block_alone() -> None:
    text = "<!-- long -->\n\n    a\n\n    b\n\nWords.\n\n    c\n\n<!-- shown -->\n```\nx\n```\n"
    found = [(block.mark, block.text) for block in blocks_in(text, "page.md")]
    assert found == [("long", "a\n\nb\n"), ("", "c\n"), ("shown", "x\n")]
