"""Callbacks that show how a run is getting on: a line a round, a live bar, TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fullfed.evaluation.metrics import METRICS
from fullfed.federation.inbox import Arrival
from fullfed.runs.assembly import Assembly
from fullfed.runs.run import Callback
from fullfed.sketch.compilation import compilation
from fullfed.units import bytes_text, seconds_text


@contextmanager
def progress_callbacks(console: Console, folder: Path) -> Iterator[list[Callback]]:
    """What shows the run of a folder on a console, and writes its TensorBoard events if it can."""
    tracked = find_spec("tensorboard") is not None
    events = [TensorBoard(folder / "tensorboard")] if tracked else []
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("visits, left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    lines = RoundLines(bar)
    try:
        with compilation(lines.on_compilation):
            yield [lines, *events]
    finally:
        bar.stop()


class RoundLines(Callback):
    """Prints one line a round, in a terminal above a bar of visits.

    Args:
        bar: disabled where there is no terminal; the lines then say how much time is left.
    """

    def __init__(self, bar: Progress) -> None:
        self._bar, self._print = bar, partial(bar.console.print, highlight=False, soft_wrap=True)

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        self._clients, federation = assembly.data.clients, assembly.recipe.federation
        self._rounds, self._first = federation.rounds, version
        self._started = time.monotonic()
        self._print(describe(assembly))
        if version > 0 and self._bar.disable:
            self._print(f"going on after round {version}")
        self._task = self._bar.add_task(
            f"round {version + 1}",
            total=federation.rounds * federation.clients_per_round,
            completed=version * federation.clients_per_round,
        )
        self._bar.start()

    def on_notice(self, text: str) -> None:
        self._print(f"note: {text}")

    def on_compilation(self) -> None:
        """A kernel is being compiled, the first of many."""
        self._print("compiling kernels for this processor, once: some ten seconds, or more")

    def on_visit_end(self, round: int, arrival: Arrival) -> None:
        name = self._clients[arrival.sender].name
        what = "failed" if arrival.payload is None else f"sent {bytes_text(len(arrival.payload))}"
        text = f"round {round + 1}: {name[:32]} {what}"
        self._bar.update(self._task, advance=1, description=text, refresh=True)

    def on_round_end(self, record: dict[str, Any]) -> None:
        line, done = describe_round(record, self._rounds), record["round"] + 1
        if self._bar.disable and done < self._rounds:
            each = (time.monotonic() - self._started) / max(done - self._first, 1)
            line += f"  {seconds_text(each * (self._rounds - done))} left"
        self._print(line)


def describe(assembly: Assembly) -> str:
    """A run in one line."""
    recipe, data = assembly.recipe, assembly.data
    parameters = sum(p.numel() for p in assembly.model.parameters())
    trimmed = f", {data.shortened} prompts shortened" if data.shortened else ""
    dropped = f", {data.dropped} samples too long and left out" if data.dropped else ""
    empty = f", {data.empty} answers empty" if data.empty else ""
    return (
        f"{recipe.method.name}: {parameters:,} parameters, {len(data.clients)} clients, "
        f"{recipe.federation.clients_per_round} a round, "
        f"{sum(len(c.examples) for c in data.clients):,} training and {len(data.test):,} "
        f"evaluation samples{trimmed}{dropped}{empty}"
    )


def describe_round(record: dict[str, Any], rounds: int) -> str:
    """A line of metrics.jsonl as a line of text."""
    measured = "".join(
        f"  {name} {record[name]:.4f}" for name in METRICS if record.get(name) is not None
    )
    measured += "".join(f"  {name} is not finite" for name in record.get("unmeasured", ()))
    trained = (
        f"train loss {record['train_loss']:.4f}{measured}  step {record['step']['server_step']:.2f}"
        if record["aggregated"]
        else f"nobody answered{measured}"
    )
    refused = f"  {_refusals(record['refused'])}" if record["refused"] else ""
    limited = f"  {len(record['limited'])} counted as fewer samples" if record["limited"] else ""
    return (
        f"round {record['round'] + 1:>{len(str(rounds))}}/{rounds}"
        f"  {trained}"
        f"  up {bytes_text(record['bytes']['up'])}  down {bytes_text(record['bytes']['down'])}"
        f"{refused}{limited}"
    )


def _refusals(refused: Sequence[Mapping[str, Any]]) -> str:
    """How many reports were not let in, and why; alike ones together, the first three reasons."""
    clients: dict[str, list[str]] = {}
    for one in refused:
        clients.setdefault(one["reason"], []).append(str(one["client"]))
    reasons = [f"client {', '.join(who)}: {why}" for why, who in clients.items()]
    shown = "; ".join(reasons[:3]) + ("; ..." if len(reasons) > 3 else "")
    return f"{len(refused)} refused ({shown})"


class TensorBoard(Callback):
    """Writes every round's numbers as TensorBoard events into a folder (extra ``tracking``)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        # Only now is it certain that there is a run whose folder this belongs into.
        from tensorboard.summary import Writer

        self._writer: Any = Writer(str(self._folder))

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
