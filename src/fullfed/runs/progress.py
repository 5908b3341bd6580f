"""Callbacks that show how a run is getting on: a line a round, a live bar, TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fullfed.evaluation.metrics import METRICS
from fullfed.federation.inbox import Arrival
from fullfed.runs.assembly import Assembly
from fullfed.runs.callbacks import Callback
from fullfed.units import bytes_text, seconds_text


@contextmanager
def progress_callbacks(console: Console, folder: Path) -> Iterator[list[Callback]]:
    """What shows a run's progress on a console, and writes its TensorBoard events if it can.

    Args:
        folder: the run's.
    """
    events = [TensorBoard(folder / "tensorboard")] if can_track() else []
    if not console.is_terminal:
        yield [ProgressLines(console), *events]
        return
    bar = ProgressBar(console)
    try:
        yield [bar, *events]
    finally:
        bar.stop()


class ProgressLines(Callback):
    """Prints one line a round."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rounds = 0
        self._first = 0
        self._started = 0.0

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        self._rounds = assembly.recipe.federation.rounds
        self._first, self._started = version, time.monotonic()
        self._console.print(describe(assembly), highlight=False, soft_wrap=True)
        if version > 0:
            self._console.print(f"going on after round {version}", highlight=False)

    def on_round_end(self, record: dict[str, Any]) -> None:
        done = record["round"] + 1
        each = (time.monotonic() - self._started) / max(done - self._first, 1)
        left = f"  {seconds_text(each * (self._rounds - done))} left" if done < self._rounds else ""
        line = f"{describe_round(record, self._rounds)}{left}"
        self._console.print(line, highlight=False, soft_wrap=True)


class ProgressBar(Callback):
    """Shows a bar of visits under the rounds' lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._assembly: Assembly | None = None
        self._rounds = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("visits, left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("loading", total=None)

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        self._assembly, federation = assembly, assembly.recipe.federation
        self._rounds = federation.rounds
        self._console.print(describe(assembly), highlight=False, soft_wrap=True)
        self._bar.reset(
            self._task,
            total=federation.rounds * federation.clients_per_round,
            completed=version * federation.clients_per_round,
            description=f"round {version + 1}",
        )
        self._bar.start()

    def on_visit_end(self, round: int, arrival: Arrival) -> None:
        assert self._assembly is not None  # on_run_begin comes first
        name = self._assembly.data.clients[arrival.sender].name
        what = "failed" if arrival.payload is None else f"sent {bytes_text(len(arrival.payload))}"
        text = f"round {round + 1}: {name[:32]} {what}"
        self._bar.update(self._task, advance=1, description=text, refresh=True)

    def on_round_end(self, record: dict[str, Any]) -> None:
        self._bar.print(describe_round(record, self._rounds), highlight=False)

    def on_run_end(self, summary: dict[str, Any]) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away, also after an error."""
        self._bar.stop()


def describe(assembly: Assembly) -> str:
    """A run in one line."""
    recipe, data = assembly.recipe, assembly.data
    parameters = sum(p.numel() for p in assembly.model.parameters())
    trimmed = f", {data.shortened} prompts shortened" if data.shortened else ""
    dropped = f", {data.dropped} samples too long and left out" if data.dropped else ""
    return (
        f"{recipe.method.name}: {parameters:,} parameters, {len(data.clients)} clients, "
        f"{recipe.federation.clients_per_round} a round, "
        f"{sum(len(c.examples) for c in data.clients):,} training and {len(data.test):,} "
        f"evaluation samples{trimmed}{dropped}"
    )


def describe_round(record: dict[str, Any], rounds: int) -> str:
    """A line of metrics.jsonl as a line of text."""
    measured = "".join(
        f"  {name} {record[name]:.4f}" for name in METRICS if record.get(name) is not None
    )
    trained = (
        f"train loss {record['train_loss']:.4f}{measured}  step {record['step']['server_step']:.2f}"
        if record["merged"]
        else f"nobody answered{measured}"
    )
    refused = f"  {len(record['refused'])} refused" if record["refused"] else ""
    return (
        f"round {record['round'] + 1:>{len(str(rounds))}}/{rounds}"
        f"  {trained}"
        f"  up {bytes_text(record['bytes']['up'])}  down {bytes_text(record['bytes']['down'])}"
        f"{refused}"
    )


def can_track() -> bool:
    """Whether the extra ``tracking`` is installed."""
    return find_spec("tensorboard") is not None


class TensorBoard(Callback):
    """Writes every round's numbers as TensorBoard events (extra ``tracking``).

    Args:
        folder: where the event file goes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        # Only now is it certain that there is a run whose folder this belongs into.
        from tensorboard.summary import Writer

        self._writer = Writer(str(self._folder))

    def on_round_end(self, record: dict[str, Any]) -> None:
        step = record["round"] + 1
        for name, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(name, value, step)
        for way in ("up", "down"):
            self._writer.add_scalar(f"bytes/{way}", record["bytes"][way], step)
        for part, seconds in record["seconds"].items():
            self._writer.add_scalar(f"seconds/{part}", seconds, step)
        self._writer.flush()

    def on_run_end(self, summary: dict[str, Any]) -> None:
        self._writer.close()
