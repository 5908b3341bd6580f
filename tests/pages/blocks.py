"""The code blocks of README.md and of the tutorials and how-to pages under docs/.

A block is fenced, or indented by four spaces. What stands before it in a comment can mark it:
``<!-- long -->`` if tests cannot carry it out in seconds, ``<!-- shown -->`` if it is not to be
carried out: a formula, a fragment, what a command printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MARKS = ("long", "shown")
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n+)?"
    r"(?:^```(?P<language>\w*)\n(?P<fenced>.*?)^```$"
    r"|(?P<indented>(?:^ {4}[^\n]*\n(?:\n(?= {4}))?)+))",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """
    Attributes:
        page: its path from the root.
        line: where it begins.
        language: "sh" where the page does not say.
        text: what is in it.
        mark: one of ``MARKS``, or "".
    """

    page: str
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_in(text: str, page: str) -> Iterator[Block]:
    """The blocks of a page's text, in order."""
    for found in _BLOCK.finditer(text):
        indented = found["indented"]
        begin = found.start("fenced") if indented is None else found.start("indented")
        yield Block(
            page,
            text.count("\n", 0, begin) + 1,
            found["language"] or "sh",
            found["fenced"] if indented is None else re.sub("^ {4}", "", indented, flags=re.M),
            found["mark"] or "",
        )


def pages() -> list[str]:
    """README.md, the first page, and those that mkdocs.yml lists as tutorials and how-to pages."""
    listed: list[str] = []
    for section in _nav():
        for title, value in section.items():
            if title in ("Tutorials", "How to"):
                listed += [f"docs/{page}" for entry in value for page in entry.values()]
    return ["README.md", "docs/index.md", *listed]


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page, given by its path from the root."""
    return list(blocks_in((ROOT / page).read_text(), page))


def python_of(page: str) -> str:
    """The Python of a page as one script, without what is marked."""
    return "\n".join(b.text for b in blocks_of(page) if b.language == "python" and not b.mark)


def _nav() -> list[dict[str, Any]]:
    """Of mkdocs.yml, whose tags name Python objects that are not needed here."""
    _, _, nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")
    parsed: list[dict[str, Any]] = yaml.safe_load(nav)
    return parsed
