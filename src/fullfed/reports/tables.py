"""Tables of finished runs, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from fullfed.evaluation.metrics import METRICS
from fullfed.units import bytes_text, seconds_text


def summary_table(summaries: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """One row a run: what it gained, and what it cost.

    Times are the clients' training, and that with encoding, aggregation and evaluation.
    """
    metrics = [metric for name, metric in METRICS.items() if name in summaries[0]]
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method")
    for metric in metrics:
        table.add_column(metric.heading, justify="right")
    for name in ("up", "down", "training", "in all"):
        table.add_column(name, justify="right")
    for summary in summaries:
        seconds, traffic = summary["seconds"], summary["bytes"]
        table.add_row(
            str(summary["method"]),
            *(_change(summary[metric.name]) for metric in metrics),
            bytes_text(traffic["up"]),
            bytes_text(traffic["down"]),
            seconds_text(seconds["train"]),
            seconds_text(seconds["total"]),
        )
    return table


def _change(values: Mapping[str, float]) -> str:
    return f"{values['initial']:.3f} → {values['final']:.3f}"
