"""A comparison as a Markdown file: the command, the table, the searches, recipe, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from fullfed.reports.comparison_tables import comparison_markdown


def comparison_document(data: Mapping[str, Any]) -> str:
    """All of it.

    Args:
        data: a comparison (comparison.json).
    """
    target = data["target"]
    return "\n".join(
        [
            f"# {data['title']}",
            "",
            f"    {data['command']}",
            "",
            f"{data['created']}. Target: {target['metric']} {target['value']:.4f}, "
            f"{target['meaning']}.",
            "",
            comparison_markdown(data),
            "## Learning rates",
            "",
            *_searches(data),
            "",
            "## Recipe",
            "",
            "```toml",
            tomli_w.dumps(data["recipe"]).rstrip(),
            *_changes(data["methods"]),
            "```",
            "",
            "## Environment",
            "",
            *_table(["", ""], [[key, str(value)] for key, value in data["environment"].items()]),
            "",
        ]
    )


def _searches(data: Mapping[str, Any]) -> list[str]:
    """Every trial: its rate and its loss, the chosen ones in bold."""
    search = data["search"]
    rows = []
    for method in data["methods"]:
        cells = [
            _trial(trial, trial["learning_rate"] == method["learning_rate"])
            for trial in search["methods"][method["label"]]
        ]
        rows.append([method["label"], *cells])
    numbers = [f"trial {number}" for number in range(1, search["trials"] + 1)]
    return [
        f"Trials of {search['rounds']} rounds each; the loss of each is on "
        f"{search['validation_samples']} samples held out of the clients' data.",
        "",
        *_table(["method", *numbers], rows),
    ]


def _trial(trial: Mapping[str, Any], chosen: bool) -> str:
    result = trial["reason"] if trial["loss"] is None else f"{trial['loss']:.4f}"
    text = f"{trial['learning_rate']:g}: {result}"
    return f"**{text}**" if chosen else text


def _changes(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the tables under ``compare`` say, as TOML with dotted keys."""
    lines = []
    for method in methods:
        if method["changes"]:
            lines += ["", f"[compare.{method['label']}]"]
        for key, value in method["changes"].items():
            lines.append(f"{key} = {tomli_w.dumps({'value': value}).partition(' = ')[2].rstrip()}")
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
