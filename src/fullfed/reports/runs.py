"""Finished runs: a table for the terminal, and plots of the loss (extra ``report``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table

from fullfed.errors import UserError
from fullfed.evaluation.metrics import METRICS
from fullfed.runs.folder import RunFolder
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


def _change(values: Mapping[str, float | None]) -> str:
    """The two numbers; one that was not finite is not in the files."""
    texts = ("–" if value is None else f"{value:.3f}" for value in values.values())
    return " → ".join(texts)


Curve = list[tuple[float, float]]


def can_plot() -> bool:
    """Whether the extra ``report`` is installed."""
    return find_spec("matplotlib") is not None


def told_apart(paths: Sequence[Path]) -> dict[str, Path]:
    """The paths by as many of their last parts as tell them all apart."""
    whole = list(dict.fromkeys(path.resolve() for path in paths))
    for count in range(1, max(len(path.parts) for path in whole) + 1):
        names = {str(Path(*path.parts[-count:])): path for path in whole}
        if len(names) == len(whole):
            break
    return names


def plot_runs(runs: Mapping[str, RunFolder], target: Path) -> list[Path]:
    """Write loss-against-rounds.png and loss-against-bytes.png into ``target``, made if need be.

    Args:
        runs: finished or unfinished runs, by the name each has in the legend.

    Raises:
        UserError: a run has not begun, or its loss was not measured.
    """
    rounds = {name: _loss_against_rounds(run) for name, run in runs.items()}
    traffic = {name: _loss_against_bytes(run) for name, run in runs.items()}
    target.mkdir(parents=True, exist_ok=True)
    return [
        _plot(rounds, "rounds", target / "loss-against-rounds.png"),
        _plot(traffic, "bytes", target / "loss-against-bytes.png"),
    ]


def _loss_against_rounds(run: RunFolder) -> Curve:
    """Points (updates applied, loss), from the base model on, wherever the loss was measured."""
    measured = [(0.0, run.base().get("loss"))]
    measured += [(record["round"] + 1, record["loss"]) for record in run.metrics()]
    curve = [(version, loss) for version, loss in measured if loss is not None]
    if not curve:
        raise UserError(
            f"{run.path}: the run's loss was not measured, so there is nothing to draw; name runs "
            "whose evaluation.metrics have it."
        )
    return curve


def _loss_against_bytes(run: RunFolder) -> Curve:
    """Points (bytes sent so far both ways, loss), from the first measured round on."""
    records = run.metrics()
    totals = accumulate(record["bytes"]["up"] + record["bytes"]["down"] for record in records)
    return [
        (total, record["loss"])
        for total, record in zip(totals, records, strict=True)
        if record["loss"] is not None
    ]


def _plot(curves: Mapping[str, Curve], against: Literal["rounds", "bytes"], path: Path) -> Path:
    # The object interface: pyplot would keep figures in a global list.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(
            [x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=name
        )
    if against == "rounds":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("rounds")
    else:
        axes.set_xscale("log")
        axes.set_xlabel("bytes up and down so far, all clients")
    axes.set_title(f"Loss on the test set against {against}")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    return path
