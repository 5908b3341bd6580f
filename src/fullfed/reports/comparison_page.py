"""A comparison as one self-contained HTML page that opens from disk, without a network.

What is text stands in the page as it is sent; the scripts under ``page/`` draw the plots from the
embedded data and sort the table.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from fullfed.files import write_atomically
from fullfed.reports.comparison_columns import METRICS, failures, legend
from fullfed.reports.comparison_sections import (
    environment_table,
    methods_table,
    recipe_text,
    results_table,
    search_table,
)

_SCRIPTS = (
    "numbers.js",
    "curves.js",
    "drawing.js",
    "axes.js",
    "placing.js",
    "plot.js",
    "pointing.js",
    "sorting.js",
    "main.js",
)


def write_page(data: Mapping[str, Any], path: Path) -> None:
    """Write a comparison's page.

    Args:
        data: a comparison (comparison.json).
        path: the file, replaced at once or not at all.

    Raises:
        UserError: it cannot be written.
    """
    # A lone surrogate (an undecodable byte of a file's name) has no UTF-8.
    write_atomically(path, comparison_page(data).encode("utf-8", "backslashreplace"))


def comparison_page(data: Mapping[str, Any]) -> str:
    """A comparison's page as text; see write_page.

    Whatever the data's strings are, they stay text: the page's policy lets only its own script
    run, named by its hash, and nothing be loaded.
    """
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    federation, search = data["recipe"]["federation"], data["search"]
    seeds = max(len(method["runs"]) for method in data["methods"])
    lede = (
        f"{_count(len(data['methods']), 'method')}, {_count(seeds, 'seed')}, "
        f"{_count(federation['rounds'], 'round')} with "
        f"{_count(federation['clients_per_round'], 'client')} each, "
        f"{datetime.fromisoformat(data['created']):%Y-%m-%d %H:%M %Z}"
    )
    return Template(_asset("page.html")).substitute(
        title=escape(data["title"]),
        lede=escape(lede),
        command=escape(data["command"]),
        curves_note=_curves_note(seeds),
        results=results_table(data),
        legend="".join(f'<p class="note">{escape(line)}</p>' for line in legend(data)),
        failures=_failure_list(data),
        methods=methods_table(data),
        search_note=escape(
            f"The same budget for every method: {_count(search['trials'], 'trial')} of "
            f"{_count(search['rounds'], 'round')}, judged by the loss (nats per token) on "
            f"{_count(search['validation_samples'], 'validation sample')} held out of the clients' "
            "data. The chosen rate is in bold."
        ),
        search=search_table(data),
        recipe=escape(recipe_text(data["recipe"])),
        environment=environment_table(data),
        data=_embedded({"metrics": _metrics(data), "comparison": data}),
        style=_asset("style.css"),
        script=script,
        script_hash=f"sha256-{digest}",
    )


def _asset(name: str) -> str:
    return files("fullfed.reports").joinpath("page", name).read_text(encoding="utf-8")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def _curves_note(seeds: int) -> str:
    if seeds == 1:
        return "One seed, so there is no spread to show."
    return f"Lines are means over {seeds} seeds, bands the sample standard deviation."


def _failure_list(data: Mapping[str, Any]) -> str:
    items = "".join(f"<li>{escape(failure)}</li>" for failure in failures(data))
    return f'<ul class="failures">{items}</ul>' if items else ""


def _metrics(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "heading": METRICS[name][0], "unit": METRICS[name][1]}
        | {"rising": name != "loss"}
        for name in data["metrics"]
    ]


def _embedded(value: Any) -> str:
    """JSON for a script element: "<" is written so that no string can end the element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
