"""The parts of a comparison's page that need no script, as HTML; every string is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import tomli_w

from fullfed.reports.comparison_columns import Column, cell, failed, table_columns


def results_table(data: Mapping[str, Any]) -> str:
    """One row a method; each heading a button that sorts, each cell with its number to sort by."""
    columns = table_columns(data)
    head = _heading("method", "", "ascending", "")
    head += _heading("learning rate", "", "ascending", "number")
    for column in columns:
        first = "descending" if column.rising else "ascending"
        head += _heading(column.heading, column.detail, first, "number")
    rows = ""
    for method in data["methods"]:
        rows += f'<tr><th scope="row" data-value="{escape(method["label"])}">'
        rows += f"{escape(method['label'])}{_small(failed(method))}</th>"
        rate = method["learning_rate"]
        rows += f'<td class="number" data-value="{rate}">{rate:.3g}</td>'
        rows += "".join(_number(column, method) for column in columns) + "</tr>\n"
    return _table("results", head, rows)


def methods_table(data: Mapping[str, Any]) -> str:
    """Every method's paper, and what its recipe changes."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("label", "method", "changes"))
    rows = ""
    for method in data["methods"]:
        changes = "<br>".join(
            escape(f"{key} = {_value(value)}") for key, value in method["changes"].items()
        )
        rows += f'<tr><th scope="row">{escape(method["label"])}</th>'
        rows += f"<td>{escape(method['title'])}{_small(method['paper'])}</td>"
        rows += f'<td class="mono">{changes or "none"}</td></tr>\n'
    return _table("methods", head, rows)


def search_table(data: Mapping[str, Any]) -> str:
    """Every trial of every method: the rate, and the loss or why there is none."""
    methods = data["search"]["methods"]
    chosen = {method["label"]: method["learning_rate"] for method in data["methods"]}
    most = max(map(len, methods.values()), default=0)
    head = '<th scope="col">method</th>'
    head += "".join(f'<th scope="col">trial {n}</th>' for n in range(1, most + 1))
    rows = ""
    for name, trials in methods.items():
        rows += f'<tr><th scope="row">{escape(name)}</th>'
        for trial in trials:
            best = ' class="chosen"' if trial["learning_rate"] == chosen.get(name) else ""
            loss = trial["reason"] if trial["loss"] is None else f"loss {trial['loss']:.3f}"
            rows += f"<td{best}>{trial['learning_rate']:.3g}{_small(str(loss))}</td>"
        rows += "<td></td>" * (most - len(trials)) + "</tr>\n"
    return _table("search", head, rows)


def environment_table(data: Mapping[str, Any]) -> str:
    """What the comparison ran on."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>\n'
        for name, value in data["environment"].items()
    )
    return f'<table class="pairs"><tbody>\n{rows}</tbody></table>'


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The recipe as TOML, without the keys that are not set."""
    return tomli_w.dumps(_set_only(recipe))


def _set_only(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _set_only(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }


def _value(value: Any) -> str:
    """A value as TOML writes it."""
    if value is None:
        return "not set"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip()


def _heading(text: str, detail: str, first: str, kind: str) -> str:
    whole = "" if " " in text else ' class="whole"'  # or "ROUGE-L" breaks at its hyphen
    return (
        f'<th scope="col" class="{kind}" data-first="{first}">'
        f'<button type="button"{whole}>{escape(text)}</button>{_small(detail)}</th>'
    )


def _number(column: Column, method: Mapping[str, Any]) -> str:
    mean, *rest = cell(column, method).lines()
    small = "".join(map(_small, rest))
    value = method["columns"][column.name]["mean"]
    key = "" if value is None else repr(value)
    return f'<td class="number" data-value="{key}">{escape(mean)}{small}</td>'


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


def _table(kind: str, head: str, rows: str) -> str:
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>'
