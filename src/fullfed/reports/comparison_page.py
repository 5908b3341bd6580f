"""A comparison as an HTML page that opens from disk, without a network: all is in the one file.

Its template is ``page/comparison.html``. What is text stands in the page as it is sent; the scripts
draw the learning curves from the embedded data and sort the tables.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fullfed.evaluation.metrics import METRICS
from fullfed.files import write_atomically
from fullfed.reports.comparison_content import (
    cell,
    changes,
    failed,
    failures,
    legend,
    recipe_text,
    table_columns,
)

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


def write_page(data: Mapping[str, Any], path: Path) -> None:
    """Write a comparison's page; the file is replaced at once or not at all.

    Args:
        data: a comparison (comparison.json).

    Raises:
        UserError: it cannot be written.
    """
    # A lone surrogate (an undecodable byte of a file's name) has no UTF-8.
    write_atomically(path, comparison_page(data).encode("utf-8", "backslashreplace"))


def comparison_page(data: Mapping[str, Any]) -> str:
    """A comparison's page as text.

    Whatever the strings in it are, they stay text: the template escapes them, and the page's
    policy lets only its own style and script work, named by their hashes, and nothing be loaded.
    """
    style = _asset("style.css")
    script = "\n".join(_asset(f"{name}.js") for name in _SCRIPTS)
    metrics = [
        {key: getattr(METRICS[name], key) for key in ("name", "heading", "unit", "more_is_better")}
        for name in data["metrics"]
    ]
    return (
        _environment()
        .get_template("comparison.html")
        .render(
            comparison=data,
            created=f"{datetime.fromisoformat(data['created']):%Y-%m-%d %H:%M %Z}",
            seeds=max(len(method["runs"]) for method in data["methods"]),
            headings=[
                Heading("method"),
                Heading("learning rate"),
                *(
                    Heading(c.heading, c.detail, "descending" if c.more_is_better else "ascending")
                    for c in table_columns(data)
                ),
            ],
            rows=_rows(data),
            legend=legend(data),
            failures=failures(data),
            changes={method["label"]: changes(method) for method in data["methods"]},
            chosen={method["label"]: method["learning_rate"] for method in data["methods"]},
            recipe=recipe_text(data["recipe"]),
            style=style,
            style_hash=_hash(style),
            script=script,
            script_hash=_hash(script),
            embedded={"metrics": metrics, "data": data},
        )
    )


def _rows(data: Mapping[str, Any]) -> list[list[SortableCell]]:
    """One row a method."""
    columns = table_columns(data)
    rows = []
    for method in data["methods"]:
        name = SortableCell([method["label"], failed(method)], method["label"])
        rate = SortableCell([f"{method['learning_rate']:.3g}"], method["learning_rate"])
        numbers = [
            SortableCell(cell(column, method).lines(), method["columns"][column.name]["mean"])
            for column in columns
        ]
        rows.append([name, rate, *numbers])
    return rows


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
