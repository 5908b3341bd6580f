"""Loss against rounds and against bytes (extra ``report``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullfed.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = tuple[list[float], list[float]]


def can_plot() -> bool:
    """Whether the extra ``report`` is installed."""
    return find_spec("matplotlib") is not None


def plot_runs(runs: Mapping[str, RunFolder], target: Path) -> list[Path]:
    """Write loss-against-rounds.png and loss-against-bytes.png into ``target``, made if need be.

    Args:
        runs: finished or unfinished runs, by the name each has in the legend.
    """
    rounds = {name: loss_against_rounds(run) for name, run in runs.items()}
    traffic = {name: loss_against_bytes(run) for name, run in runs.items()}
    target.mkdir(parents=True, exist_ok=True)
    return [
        _plot(rounds, "rounds", "linear", target / "loss-against-rounds.png"),
        _plot(traffic, "bytes up and down, all clients", "log", target / "loss-against-bytes.png"),
    ]


def loss_against_rounds(run: RunFolder) -> Curve:
    """(updates applied, loss), from the base model on, wherever the loss was measured."""
    points = [(0.0, run.base()["loss"])]
    points += [(float(r["round"] + 1), r["loss"]) for r in _measured(run.metrics())]
    return _transpose(points)


def loss_against_bytes(run: RunFolder) -> Curve:
    """(bytes sent so far both ways, loss), from the first measured round on."""
    records = run.metrics()
    totals = accumulate(r["bytes"]["up"] + r["bytes"]["down"] for r in records)
    sums = dict(zip((r["round"] for r in records), totals, strict=True))
    return _transpose([(float(sums[r["round"]]), r["loss"]) for r in _measured(records)])


def _measured(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [record for record in records if record["loss"] is not None]


def _transpose(points: Sequence[tuple[float, float]]) -> Curve:
    return [x for x, _ in points], [y for _, y in points]


def _plot(curves: Mapping[str, Curve], label: str, scale: str, path: Path) -> Path:
    # The object interface: pyplot would keep figures in a global list.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes: Axes = figure.subplots()
    for name, (x, y) in curves.items():
        axes.plot(x, y, marker="o", markersize=3, label=name)
    axes.set_xscale(scale)
    axes.set_xlabel(label)
    axes.set_ylabel("evaluation loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    return path
