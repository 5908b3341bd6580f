"""Tables of finished runs, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from fullfed.reports.text import bytes_text, seconds_text

_METRIC_NAMES = {
    "loss": "loss",
    "rouge_l": "ROUGE-L",
    "exact_match": "exact match",
    "gsm8k": "GSM8K",
}


def summary_table(summaries: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """One row a run: what it gained, and what it cost.

    Times are the clients' training, and that with encoding, aggregation and evaluation.
    """
    metrics = [name for name in _METRIC_NAMES if name in summaries[0]]
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method")
    for name in metrics:
        table.add_column(_METRIC_NAMES[name], justify="right")
    for name in ("up", "down", "training", "in all"):
        table.add_column(name, justify="right")
    for summary in summaries:
        seconds, traffic = summary["seconds"], summary["bytes"]
        table.add_row(
            str(summary["method"]),
            *(f"{summary[n]['initial']:.3f} → {summary[n]['final']:.3f}" for n in metrics),
            bytes_text(traffic["up"]),
            bytes_text(traffic["down"]),
            seconds_text(seconds["train"]),
            seconds_text(seconds["total"]),
        )
    return table
