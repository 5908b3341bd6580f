"""Damages every file of a run's folder on a node, and sees what the node answers then.

    PYTHONPATH=tests python -m trials.nodes --regions 40

The answer must be the one that it would have been, perhaps after the node has asked for everything
anew, or a failure that the node's operator finds explained in one sentence.
"""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from flower.real import write_ingredients
from flower.small import RUN, Reference, node_worker, reference
from fullfed.engines.node import NodeWorker
from fullfed.engines.node_messages import Answer, Order
from trials.damage import DIFFERENT, REFUSED, SAME, TRACEBACK, Tally, damaged_copies
from trials.subjects import models_in_memory

ROUNDS = 5
HELD = 3  # the version that the node is at
OTHER_RUN = "f" * 16
METHODS: dict[str, dict[str, Any]] = {
    "sketch": {"name": "ferret", "coordinates": 300},
    "residuals": {"name": "fedcybgd", "blocks": 2, "clients_per_block": 2},
}

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


def ask(node: NodeWorker, order: Order) -> Answer:
    return Answer.of(node.handle(order.frames()))


def state_after(known: Reference, folder: Path, state: Path, run: str = RUN) -> Path:
    """The folder of a run on client 0's node that has answered the plans before version HELD."""
    node = node_worker(folder, 0, state)
    for round in range(HELD + 1):
        answer = ask(node, replace(known.order(round, 0, max(round - 1, 0)), run=run))
        assert answer.report == known.reports[round, 0]
    node.leave()
    return state / run


class _Tracebacks(logging.Handler):
    """Counts them in the worker's log."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(repr(record.exc_info[1]))


@contextmanager
def worker_log() -> Iterator[_Tracebacks]:
    log, handler = logging.getLogger("fullfed.engines.node"), _Tracebacks()
    log.addHandler(handler)
    log.propagate = False
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        log.propagate = True


def outcome(known: Reference, folder: Path, state: Path) -> str:
    """What a node with this state answers to the next plan."""
    node, round = node_worker(folder, 0, state), HELD + 1
    with worker_log() as log:
        answer = ask(node, replace(known.order(round, 0, since=HELD), settings=b""))
        if answer.lacks:
            answer = ask(node, known.order(round, 0))
    node.leave()
    if log.found:
        return f"{TRACEBACK}: {log.found[0]}"
    if answer.failure:
        return REFUSED
    return SAME if answer.report == known.reports[round, 0] else f"{DIFFERENT}: the report"


def damage_all(
    name: str,
    folder: Path,
    home: Path,
    regions: int,
    seed: int,
    tally: Tally,
    share: float = 1.0,
) -> None:
    """Damage each file of the run's folder on a node, one at a time."""
    known = reference(folder, ROUNDS, METHODS[name])
    other = reference(folder, ROUNDS, {**METHODS[name], "server_step": 0.5})
    whole = state_after(known, folder, home / name)
    neighbour = state_after(other, folder, home / f"{name}, neighbour", OTHER_RUN)
    chance, damaged = random.Random(seed), home / "damaged" / RUN
    for what, out in damaged_copies(whole, neighbour, damaged, regions, chance, share):
        tally.damages += 1
        tally.add("answer", outcome(known, folder, out.parent), f"{name}: {what}")


@app.command()
def main(
    methods: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(METHODS),
    regions: Annotated[int, typer.Option(min=1, help="Flipped bits in each file.")] = 40,
    seed: Annotated[int, typer.Option(help="Of the damages.")] = 0,
) -> None:
    """Damage what nodes keep; fail if a node then answers what it should not."""
    torch.set_num_threads(1)
    tally = Tally()
    with tempfile.TemporaryDirectory() as home, models_in_memory():
        folder = Path(home) / "ingredients"
        folder.mkdir()
        write_ingredients(folder)
        for name in methods.split(","):
            damage_all(name, folder, Path(home), regions, seed, tally)
    tally.show()
    raise typer.Exit(1 if tally.faults else 0)


if __name__ == "__main__":
    app()
