"""The parts of a page, as a page that is not of a comparison has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from fullfed.reports.pages import Heading, SortableCell, environment, render
from reports.invented import comparison

RUN = """
{% extends "layout.html" %}
{% from "parts.html" import learning_curves, section, sortable_table %}
{% block title %}{{ name }}{% endblock %}
{% block header %}<h1>{{ name }}</h1>{% endblock %}
{% block main %}
{% if curves %}{{ learning_curves("One run.") }}{% endif %}
{% call section("clients", "Clients") %}{{ sortable_table("clients", headings, rows) }}{% endcall %}
{% endblock %}
"""


def page(data: dict[str, Any], curves: bool) -> str:
    return render(
        environment().from_string(RUN),
        data,
        name="a <b>run</b>",
        curves=curves,
        headings=[Heading("client"), Heading("score", "0 to 1", "descending")],
        rows=[
            [SortableCell(["<i>ann</i>"], "ann"), SortableCell(["0.2", "± 0.1"], 0.2)],
            [SortableCell(["bob"], "bob"), SortableCell(["0.9"], 0.9)],
            [SortableCell(["cy"], "cy"), SortableCell(["–"], None)],
        ],
    )


@pytest.mark.parametrize("curves", [True, False])
def test_one_run_and_its_clients(chromium: Chrome, tmp_path: Path, curves: bool) -> None:
    whole = comparison(methods=1, seeds=1, rounds=4, every=1)
    data = {"metrics": whole["metrics"], "methods": whole["methods"]} if curves else {}
    (tmp_path / "page.html").write_text(page(data, curves))
    chromium.get((tmp_path / "page.html").as_uri())

    def found(selector: str) -> list[Any]:
        return chromium.find_elements(By.CSS_SELECTOR, selector)

    assert len(found("figure .mean")) == (3 if curves else 0)
    assert [text.text for text in found(".reference text")] == ["base model 6.57"] * 3 * curves
    assert found("h1")[0].text == "a <b>run</b>"
    found("th button")[1].click()
    assert [row.text for row in found("tbody th")] == ["bob", "<i>ann</i>", "cy"]
    assert chromium.get_log("browser") == []
