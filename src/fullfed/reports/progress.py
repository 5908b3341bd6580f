"""Telling a person how a run is getting on: live in a terminal, in plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fullfed.federation.inbox import Arrival
from fullfed.reports.text import bytes_text, seconds_text
from fullfed.reports.tracking import TensorBoard, can_track
from fullfed.runs.assembly import Assembly
from fullfed.runs.run import Watcher


class PlainProgress:
    """A Watcher that prints one line a round."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rounds = 0
        self._first = 0
        self._started = 0.0

    def begin(self, assembly: Assembly, version: int) -> None:
        self._rounds = assembly.recipe.federation.rounds
        self._first, self._started = version, time.monotonic()
        self._console.print(describe(assembly), highlight=False, soft_wrap=True)
        if version > 0:
            self._console.print(f"going on after round {version}", highlight=False)

    def visit(self, round: int, arrival: Arrival) -> None:
        pass

    def round(self, record: dict[str, Any]) -> None:
        done = record["round"] + 1
        each = (time.monotonic() - self._started) / max(done - self._first, 1)
        left = f"  {seconds_text(each * (self._rounds - done))} left" if done < self._rounds else ""
        line = f"{describe_round(record, self._rounds)}{left}"
        self._console.print(line, highlight=False, soft_wrap=True)

    def end(self, summary: dict[str, Any]) -> None:
        pass


class LiveProgress:
    """A Watcher that shows a bar of visits under the rounds' lines."""

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

    def begin(self, assembly: Assembly, version: int) -> None:
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

    def visit(self, round: int, arrival: Arrival) -> None:
        assert self._assembly is not None  # begin comes first
        name = self._assembly.data.clients[arrival.sender].name
        what = "failed" if arrival.payload is None else f"sent {bytes_text(len(arrival.payload))}"
        text = f"round {round + 1}: {name[:32]} {what}"
        self._bar.update(self._task, advance=1, description=text, refresh=True)

    def round(self, record: dict[str, Any]) -> None:
        self._bar.print(describe_round(record, self._rounds), highlight=False)

    def end(self, summary: dict[str, Any]) -> None:
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
        f"  {name} {record[name]:.4f}"
        for name in ("loss", "rouge_l", "exact_match", "gsm8k")
        if record.get(name) is not None
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


class _Several:
    """A Watcher that tells several."""

    def __init__(self, watchers: list[Watcher]) -> None:
        self._watchers = watchers

    def begin(self, assembly: Assembly, version: int) -> None:
        for watcher in self._watchers:
            watcher.begin(assembly, version)

    def visit(self, round: int, arrival: Arrival) -> None:
        for watcher in self._watchers:
            watcher.visit(round, arrival)

    def round(self, record: dict[str, Any]) -> None:
        for watcher in self._watchers:
            watcher.round(record)

    def end(self, summary: dict[str, Any]) -> None:
        for watcher in self._watchers:
            watcher.end(summary)


@contextmanager
def watching(console: Console, directory: Path) -> Iterator[Watcher]:
    """What shows a run's progress here, and writes its TensorBoard events if it can."""
    live = LiveProgress(console) if console.is_terminal else None
    watchers: list[Watcher] = [live or PlainProgress(console)]
    if can_track():
        watchers.append(TensorBoard(directory / "tensorboard"))
    try:
        yield _Several(watchers)
    finally:
        if live is not None:
            live.stop()
