"""Callbacks that show how a run is getting on: a line a round, a live bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from fullfed.evaluation.metrics import METRICS
from fullfed.federation.inbox import Arrival
from fullfed.headway import QUIET_SECONDS, Headway, NowAndThen
from fullfed.runs.assembly import Assembly
from fullfed.runs.callback import Callback
from fullfed.runs.tracking import TensorBoard, WeightsAndBiases
from fullfed.runs.visits_table import RunProgress
from fullfed.sketch.compilation import compilation
from fullfed.units import bytes_text, seconds_text

_REDRAWN_SECONDS = 0.5  # after which a bar says how far a visit is


@contextmanager
def progress_callbacks(
    console: Console,
    folder: Path,
    clock: Callable[[], float] = time.monotonic,
    wandb: str | None = None,
) -> Iterator[list[Callback]]:
    """What shows the run of a folder on a console, and writes its TensorBoard events if it can.

    Args:
        wandb: the project of Weights & Biases that is told of it as well.
    """
    trackers: list[Callback] = []
    if find_spec("tensorboard") is not None:
        trackers.append(TensorBoard(folder / "tensorboard"))
    if wandb is not None:
        trackers.append(WeightsAndBiases(wandb, folder))
    bar = RunProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("visits, left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    lines = RoundLines(bar, clock)
    try:
        with compilation(lines.on_compilation):
            yield [lines, *trackers]
    finally:
        bar.stop()


class RoundLines(Callback):
    """Prints one line a round, in a terminal above a table of its visits and a bar.

    The bar says how far a visit or an evaluation is. Where there is no terminal, a line says it
    when nothing else was printed for a while, so that short ones have none.

    Args:
        bar: disabled where there is no terminal; the lines then say how much time is left.
        clock: seconds from some point on.
    """

    def __init__(self, bar: RunProgress, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar, self._clock = bar, clock
        every = QUIET_SECONDS if bar.disable else _REDRAWN_SECONDS
        self._watch = NowAndThen(self._show, every, clock)
        self._began: tuple[float, int] | None = None  # the first round of this process: when, which

    def on_run_begin(self, assembly: Assembly, version: int) -> None:
        self._clients, federation = assembly.data.clients, assembly.recipe.federation
        self._rounds, self._cohort = federation.rounds, federation.clients_per_round
        self._version, self._visits, self._ended = version, 0, 0
        self._print(describe(assembly))
        if version > 0 and self._bar.disable:
            self._print(f"going on after round {version}")
        self._task = self._bar.add_task(
            "base model" if version == 0 else f"round {version + 1}",
            total=federation.rounds * federation.clients_per_round,
            completed=version * federation.clients_per_round,
        )
        self._bar.start()

    def on_notice(self, text: str) -> None:
        self._print(f"note: {text}")

    def on_compilation(self) -> None:
        """A kernel is being compiled, the first of many."""
        self._print("compiling kernels for this processor, once: some ten seconds, or more")

    def on_round_begin(self, round: int) -> None:
        self._began = self._began or (self._clock(), round)
        self._visits = 0
        self._bar.visits.clear()
        self._bar.update(self._task, description=f"round {round + 1}")

    def on_headway(self, version: int, headway: Headway) -> None:
        self._version = version
        self._watch(headway)

    def on_visit_end(self, round: int, arrival: Arrival) -> None:
        self._visits += 1
        self._ended += 1
        name = self._clients[arrival.sender].name
        self._bar.visits.add(name, arrival)
        what = "failed" if arrival.payload is None else f"sent {bytes_text(len(arrival.payload))}"
        text = f"round {round + 1}: {name[:32]} {what}"
        completed = round * self._cohort + self._visits
        self._bar.update(self._task, completed=completed, description=text, refresh=True)

    def on_round_end(self, record: dict[str, Any]) -> None:
        line, done = describe_round(record, self._rounds), record["round"] + 1
        if self._bar.disable and done < self._rounds:
            line += self._left(done)
        self._print(line)

    def _show(self, headway: Headway, text: str) -> None:
        """Say how far something is, and beside a visit how much of the run is left."""
        done: float = self._version
        if headway.work in ("train", "aggregate"):
            where = f"round {self._version + 1}/{self._rounds}"
            part = headway.done / headway.of if headway.work == "train" else 0.0
            done += min(self._visits + part, self._cohort) / self._cohort
        else:
            where = f"after round {self._version}" if self._version else "base model"
        if headway.client is not None:
            where += f"  {self._clients[headway.client].name[:32]}"
        if self._bar.disable:
            left = self._left(done)
            self._print(f"{where}  {text}{left and left + ' in all'}")
        else:
            self._bar.update(
                self._task, completed=done * self._cohort, description=f"{where}  {text}"
            )

    def _left(self, rounds: float) -> str:
        """How long the run takes from here on, if it goes on as this process has seen it; nothing
        before its first visit has ended, of which a few steps say little."""
        if self._began is None or not self._ended or not rounds < self._rounds:
            return ""
        each = (self._clock() - self._began[0]) / (rounds - self._began[1])
        return f"  {seconds_text(each * (self._rounds - rounds))} left"

    def _print(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, soft_wrap=True, markup=False)
        self._watch.said()


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
    trained = measured.strip()
    if record.get("train_loss") is not None:
        trained = f"train loss {record['train_loss']:.4f}{measured}"
    elif not record["aggregated"]:
        trained = f"no report counted{measured}"
    if record["aggregated"]:
        trained += f"  step {record['step']['server_step']:.2f}"
    if record.get("epsilon") is not None:
        trained += f"  epsilon {record['epsilon']:.3g}"
    refused = f"  {_refusals(record['refused'])}" if record["refused"] else ""
    limited = f"  {len(record['limited'])} counted as fewer samples" if record["limited"] else ""
    if record.get("left_out"):
        limited += f"  {len(record['left_out'])} left out by the rule"
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
