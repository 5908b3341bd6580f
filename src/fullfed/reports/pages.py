"""What all HTML pages have in common: each opens from disk, without a network, from one file.

Templates, style and scripts are under ``page/``. What is text stands in a page as it is sent; the
scripts draw learning curves from the embedded data and sort the tables.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fullfed.evaluation.metrics import METRICS
from fullfed.files import write_atomically

_SCRIPTS = ("axes", "drawing", "curves", "plot", "pointing", "tables", "page")


@dataclass(frozen=True)
class Heading:
    """A heading of a table that sorts.

    Attributes:
        text: what the button says.
        detail: what stands under it, such as a unit.
        first: how the first press sorts, "ascending" or "descending".
    """

    text: str
    detail: str = ""
    first: str = "ascending"


@dataclass(frozen=True)
class SortableCell:
    """A cell of a table that sorts; the first one of a row names the row.

    Attributes:
        lines: its text, all but the first line in small print.
        key: what it is sorted by; None comes last.
    """

    lines: Sequence[str]
    key: float | str | None


def render_page(template: str, curves: Mapping[str, Any], **content: Any) -> str:
    """A page as text.

    Whatever the strings in it are, they stay text: the template escapes them, and the page's
    policy lets only its own style and script work, named by their hashes, and nothing be loaded.

    Args:
        template: its name under ``page/``.
        curves: what the scripts draw: "metrics" (names), "methods" and "target" as in
            comparison.json.
        content: what the template names.
    """
    style = _asset("style.css")
    script = "\n".join(_asset(f"{name}.js") for name in _SCRIPTS)
    metrics = [
        {key: getattr(METRICS[name], key) for key in ("name", "heading", "unit", "more_is_better")}
        for name in curves["metrics"]
    ]
    return (
        _environment()
        .get_template(template)
        .render(
            style=style,
            style_hash=_hash(style),
            script=script,
            script_hash=_hash(script),
            embedded={"metrics": metrics, "data": curves},
            **content,
        )
    )


def write_page(page: str, path: Path) -> None:
    """Write a page; the file is replaced at once or not at all.

    Raises:
        UserError: it cannot be written.
    """
    # A lone surrogate (an undecodable byte of a file's name) has no UTF-8.
    write_atomically(path, page.encode("utf-8", "backslashreplace"))


@cache
def _environment() -> Environment:
    """Finds the templates under ``page/`` and escapes what they show."""
    made = Environment(
        loader=PackageLoader("fullfed.reports", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"allow_nan": False}
    made.filters["count"] = _count
    return made


def _count(number: int, noun: str) -> str:
    """A number with its noun: "1 round", "1,000 rounds"."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def _asset(name: str) -> str:
    return files("fullfed.reports").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A source's name in a Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
