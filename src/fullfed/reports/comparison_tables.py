"""A comparison as a table for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fullfed.reports.comparison_columns import Column, cell, failed, failures, legend, table_columns


def comparison_table(data: Mapping[str, Any]) -> Table:
    """What the methods learned and sent, then what it took, so that each part fits 80 columns.

    One row a method, spreads under the means; failed runs and their reasons below.

    Args:
        data: a comparison (comparison.json).
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


def comparison_markdown(data: Mapping[str, Any]) -> str:
    """The table as Markdown, with what the numbers mean and the failed runs under it."""
    columns = table_columns(data)
    headings = [", ".join(filter(None, (column.heading, column.detail))) for column in columns]
    lines = [
        _row(["method", "learning rate", *headings]),
        "|---|" + "---:|" * (1 + len(columns)),
    ]
    for method in data["methods"]:
        texts = [cell(column, method).line() for column in columns]
        name = " ".join(filter(None, (method["label"], failed(method))))
        lines.append(_row([name, f"{method['learning_rate']:.3g}", *texts]))
    lines += ["", *map(_escaped, legend(data))]
    if failures(data):
        lines += ["", *(f"- {_escaped(failure)}" for failure in failures(data))]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    """The text as Markdown that shows it as it is, on one line and in one cell."""
    flat = " ".join(text.split())
    return "".join(f"\\{c}" if c in r"\`*_[]<>|#~" else c for c in flat)
