"""A comparison as text: a table for the terminal, and a document in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fullfed.reports.comparison_content import (
    Column,
    cell,
    changes,
    failed,
    failures,
    legend,
    recipe_text,
    table_columns,
)


def comparison_table(data: Mapping[str, Any]) -> Table:
    """What the methods learned and sent, then what it took, so that each part fits 80 columns.

    One row a method, spreads under the means; failed runs and their reasons below.
    """
    columns = table_columns(data)
    whole = Table(
        title=Text(data["title"]),
        caption=Text("\n".join([*legend(data), *failures(data)])),
        caption_justify="left",
        box=None,
        padding=0,
        show_header=False,
    )
    takes = [column for column in columns if column.name.endswith(("_seconds", "memory_bytes"))]
    whole.add_row(_part(data, [column for column in columns if column not in takes]))
    whole.add_row(_part(data, takes))
    return whole


def _part(data: Mapping[str, Any], columns: list[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", overflow="fold")
    for column in columns:
        heading = "\n".join(filter(None, (column.heading, column.detail)))
        table.add_column(heading, justify="right", overflow="fold")
    for method in data["methods"]:
        texts = ["\n".join(cell(column, method).lines()) for column in columns]
        lines = method["label"], f"lr {method['learning_rate']:.3g}", failed(method)
        table.add_row(*map(Text, ("\n".join(filter(None, lines)), *texts)))
    return table


def comparison_document(data: Mapping[str, Any]) -> str:
    """A Markdown file: the command, the results, the searches, the recipe and the environment."""
    target = data["target"]
    environment = [[_escaped(key), _escaped(str(v))] for key, v in data["environment"].items()]
    return "\n".join(
        [
            f"# {_escaped(data['title'])}",
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
            recipe_text(data["recipe"]).rstrip(),
            *_tables_of_changes(data["methods"]),
            "```",
            "",
            "## Environment",
            "",
            *_table(["", ""], environment),
            "",
        ]
    )


def comparison_markdown(data: Mapping[str, Any]) -> str:
    """The results as a Markdown table, with what the numbers mean and the failed runs under it."""
    columns = table_columns(data)
    headings = [", ".join(filter(None, (column.heading, column.detail))) for column in columns]
    rows = []
    for method in data["methods"]:
        texts = [cell(column, method).line() for column in columns]
        name = " ".join(filter(None, (method["label"], failed(method))))
        rows.append([_escaped(text) for text in (name, f"{method['learning_rate']:.3g}", *texts)])
    head = [_escaped(text) for text in ("method", "learning rate", *headings)]
    lines = [*_table(head, rows, numbers=True), "", *map(_escaped, legend(data))]
    if failures(data):
        lines += ["", *(f"- {_escaped(failure)}" for failure in failures(data))]
    return "\n".join(lines) + "\n"


def _searches(data: Mapping[str, Any]) -> list[str]:
    """Every trial: its rate and its loss, the chosen ones in bold."""
    search = data["search"]
    rows = []
    for method in data["methods"]:
        trials = search["methods"][method["label"]]
        cells = [_trial(t, t["learning_rate"] == method["learning_rate"]) for t in trials]
        rows.append([_escaped(method["label"]), *cells])
    numbers = [f"trial {number}" for number in range(1, search["trials"] + 1)]
    return [
        f"Trials of {search['rounds']} rounds each; the loss of each is on "
        f"{search['validation_samples']} samples held out of the clients' data.",
        "",
        *_table(["method", *numbers], rows),
    ]


def _trial(trial: Mapping[str, Any], chosen: bool) -> str:
    result = trial["reason"] if trial["loss"] is None else f"{trial['loss']:.4f}"
    text = _escaped(f"{trial['learning_rate']:g}: {result}")
    return f"**{text}**" if chosen else text


def _tables_of_changes(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables under ``compare``."""
    lines = []
    for method in methods:
        if method["changes"]:
            lines += ["", f"[compare.{method['label']}]", *changes(method)]
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> list[str]:
    """The lines of a table; cells are Markdown. With ``numbers`` all columns but one are right."""
    rest = "---:" if numbers else "---"
    return [_row(head), "|---|" + f"{rest}|" * (len(head) - 1), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    """The text as Markdown that shows it as it is, on one line and in one cell."""
    flat = " ".join(text.split())
    return "".join(f"\\{c}" if c in r"\`*_[]<>|#~" else c for c in flat)
