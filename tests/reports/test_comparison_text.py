"""The tables for the terminal and in Markdown, against numbers computed by hand."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fullfed.reports.comparison_text import comparison_markdown, comparison_table
from reports.invented import comparison, fail


def by_hand() -> dict[str, Any]:
    """Two methods, two seeds, numbers whose means and deviations can be worked out on paper."""
    data = comparison(methods=2, seeds=2)
    two = {
        "loss": (3.5, 3.7, 3.6, 0.1414),  # values, mean, their difference over the root of two
        "rouge_l": (0.25, 0.25, 0.25, 0.0),
        "rounds_to_target": (6, 9, 7.5, 2.1213),
        "up_bytes": (1536, 1536, 1536.0, 0.0),
        "down_bytes": (3 * 2**20, 5 * 2**20, 4.0 * 2**20, 1.4142 * 2**20),
        "train_seconds": (90.0, 110.0, 100.0, 14.142),
        "encode_seconds": (0.02, 0.04, 0.03, 0.014142),
        "aggregate_seconds": (0.0, 0.0, 0.0, 0.0),
        "total_seconds": (7200.0, 7200.0, 7200.0, 0.0),
        "peak_memory_bytes": (2**30, 3 * 2**30, 2.0 * 2**30, 1.4142 * 2**30),
    }
    data["methods"][0]["learning_rate"] = 0.03162
    data["methods"][0]["columns"] = {
        name: {"values": [a, b], "mean": mean, "spread": spread}
        for name, (a, b, mean, spread) in two.items()
    }
    return data


def rows(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def screen(data: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width, file=StringIO())
    with console.capture() as capture:
        console.print(comparison_table(data))
    return capture.get()


def test_markdown() -> None:
    head, rule, first, second = rows(comparison_markdown(by_hand()))
    assert head == [
        *("method", "learning rate", "loss, nats per token", "ROUGE-L, 0 to 1"),
        "rounds to target, loss ≤ 4.5",
        *("bytes up", "bytes down", "training", "encoding", "aggregation", "total time"),
        "peak memory",
    ]
    assert rule == ["---", *["---:"] * 11]
    assert first == [
        *("fedavg", "0.0316", "3.600 ± 0.141", "0.250 ± 0.000", "7.5 ± 2.1"),
        *("1.50 ± 0.00 KiB", "4.00 ± 1.41 MiB", "1.67 ± 0.24 min", "30.0 ± 14.1 ms", "0 ± 0 ms"),
        *("2.00 ± 0.00 h", "2.00 ± 1.41 GiB"),
    ]
    assert second[0] == "ferret"


def test_terminal() -> None:
    text = screen(by_hand())
    assert max(map(len, text.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in text.splitlines()]
    at = lines.index("fedavg 3.600 0.250 7.5 1.50 KiB 4.00 MiB")
    assert lines[at + 1] == "lr 0.0316 ± 0.141 ± 0.000 ± 2.1 ± 0.00 ± 1.41"
    at = lines.index("fedavg 1.67 min 30.0 ms 0 ms 2.00 h 2.00 GiB")
    assert lines[at + 1] == "lr 0.0316 ± 0.24 ± 14.1 ± 0 ± 0.00 ± 1.41"


def test_a_narrow_terminal_loses_nothing() -> None:
    assert "…" not in screen(by_hand(), width=40)


def test_one_seed_has_no_spread() -> None:
    data = comparison(methods=2, seeds=1)
    for text in (comparison_markdown(data), screen(data)):
        assert "±" not in text
        assert "One seed" in text


def test_failed_runs_are_shown() -> None:
    data = comparison(methods=2, seeds=3)
    fail(data, "ferret", 1, "the loss is not finite", after=3)
    for seed in range(3):
        fail(data, "fedavg", seed, "out of memory", after=0)
    for text in (comparison_markdown(data), screen(data)):
        assert "ferret, seed 1, failed: the loss is not finite" in " ".join(text.split())
        assert text.count("out of memory") == 3
    _, _, first, second = rows(comparison_markdown(data))
    assert first == ["fedavg 3 of 3 failed", "0.5", *["–"] * 10]
    assert second[0] == "ferret 1 of 3 failed"
    assert "±" in second[2]  # over the two that finished


@pytest.mark.parametrize(
    ("values", "mean", "text"),
    [
        ([None, None], None, "not reached"),
        ([8, None], None, "8, – (1 of 2 seeds)"),
        ([8, 9], 8.5, "8.5 ± 0.7"),
    ],
)
def test_a_target_that_some_seeds_do_not_reach(
    values: list[int | None], mean: float | None, text: str
) -> None:
    data = by_hand()
    data["methods"][0]["columns"]["rounds_to_target"] = {
        "values": values,
        "mean": mean,
        "spread": None if mean is None else 0.7071,
    }
    assert rows(comparison_markdown(data))[2][4] == text


@given(st.text())
def test_no_label_breaks_the_markdown_table(label: str) -> None:
    data = by_hand()
    data["methods"][0]["label"] = label
    assert [len(row) for row in rows(comparison_markdown(data))] == [12] * 4


def test_markup_in_strings_is_text() -> None:
    data = by_hand()
    data["title"], data["methods"][0]["label"] = "[bold]title[/bold]", "[red]a[/red]"
    assert "[bold]title[/bold]" in screen(data)
    assert "[red]a[/red]" in screen(data)
    assert r"\[red\]a\[/red\]" in comparison_markdown(data)
