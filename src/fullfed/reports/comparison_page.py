"""A comparison as an HTML page; its template is ``page/comparison.html``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fullfed.reports.comparison_content import (
    cell,
    changes,
    failed,
    failures,
    legend,
    recipe_text,
    table_columns,
)
from fullfed.reports.pages import Heading, SortableCell, render_page


def comparison_page(data: Mapping[str, Any]) -> str:
    """A comparison's page as text.

    Args:
        data: a comparison (comparison.json).
    """
    return render_page(
        "comparison.html",
        curves=data,
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
