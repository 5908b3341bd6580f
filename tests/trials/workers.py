"""Kills worker processes at any moment, and compares the runs with the serial engine's.

    PYTHONPATH=tests python -m trials.workers --kills 50

Each kill is SIGKILL to one of a run's two worker processes at a random moment, whatever it does
then: it may start, train, or wait. The next one comes after the round's end, so that no visit is
killed twice, which would be a failed visit.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer

from fullfed import child_processes
from fullfed.config import Recipe
from fullfed.engines.parallel import ParallelSimulation
from fullfed.runs import run, simulated
from fullfed.runs.callback import Callback
from runs.small import recipe, write_ingredients
from trials.kills import content

ROUNDS = 12
SUBJECTS: dict[str, dict[str, Any]] = {
    "fedavg": {"method": {"name": "fedavg"}},
    "ferret": {},
    "fedcybgd": {
        "method": {"name": "fedcybgd", "surrogate": 0.5},
        "federation": {"clients_per_round": 2},  # the model has two blocks
    },
    "residuals": {
        "method": {
            "name": "fedavg",
            "codec": {"name": "topk", "upload": 1605, "error_feedback": True},
        }
    },
    "buffered": {
        "method": {
            "name": "fedbuff",
            "buffer": 2,
            "codec": {"name": "dense", "precision": "bfloat16", "error_feedback": True},
        }
    },
}

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


def recipe_of(name: str, ingredients: Path, workers: int, rounds: int = ROUNDS) -> Recipe:
    """Three of four clients a round, so that two workers have something to do."""
    own = {"rounds": rounds, "clients_per_round": 3, "snapshot_every": 3}
    federation = {**own, **SUBJECTS[name].get("federation", {})}
    return recipe(
        ingredients,
        **{**SUBJECTS[name], "federation": federation},
        local={"steps": 4},
        simulation={"workers": workers, "threads": 1, "failures": 0.1},
    )


@contextmanager
def quick_starts() -> Iterator[None]:
    """Inside, child processes are forked from a server that has loaded all modules already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fullfed.runs.run", "fullfed.quickstart", "transformers"])
    with mock.patch.object(child_processes, "_CONTEXT", context):
        yield


class Killer(Callback):
    """Kills one of a run's worker processes now and then, until there were enough.

    Args:
        most: kills.
        longest: seconds from a round's end to a kill, at most.
        chance: decides when, and which.

    Attributes:
        kills: so far.
        did: what the processes did when they were found to have ended.
    """

    def __init__(self, most: int, longest: float, chance: random.Random) -> None:
        self._most, self._longest, self._chance = most, longest, chance
        self._pids: list[int] = []
        self._timer: threading.Timer | None = None
        self._rounds = 0
        self.kills, self.did = 0, Counter[str]()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the processes that runs start are known, and what becomes of them."""
        real, real_buried = child_processes.start, ParallelSimulation._buried

        def buried(engine: ParallelSimulation, one: Any) -> str:
            working = "waiting" if one.client is None else "visiting"
            self.did["starting" if one.version is None else working] += 1
            return real_buried(engine, one)

        def start(*arguments: Any) -> Any:
            connection, process = real(*arguments)
            assert process.pid is not None
            self._pids.append(process.pid)
            return connection, process

        with (
            mock.patch.object(simulated, "start", start),
            mock.patch.object(ParallelSimulation, "_buried", buried),
        ):
            yield

    def on_round_end(self, record: dict[str, Any]) -> None:
        self._rounds += 1
        # A kill between two visits is met in the next round: no other one until that is over.
        if self._rounds % 2 and self.kills < self._most:
            self._timer = threading.Timer(self._chance.uniform(0, self._longest), self._kill)
            self._timer.start()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer.join()

    def on_run_end(self, summary: dict[str, Any]) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        self._pids.clear()

    def _kill(self) -> None:
        if self._pids:
            pid = self._pids.pop(self._chance.randrange(len(self._pids)))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills += 1


def differences(out: Path, whole: Path) -> list[str]:
    """What two runs have that should be equal and is not."""
    one, other = content(out), content(whole)
    return [f"{out.name}: {what} differs" for what in one if one[what] != other[what]]


def disturbed(
    name: str, ingredients: Path, home: Path, kills: int, chance: random.Random, longest: float
) -> list[str]:
    """Runs of one method with so many kills in all; what is wrong with what came of them."""
    whole, done, faults, number = home / f"{name}-whole", 0, list[str](), 0
    did = Counter[str]()
    run.start(recipe_of(name, ingredients, workers=1), whole)
    while done < kills:
        out = home / f"{name}-{number}"
        killer = Killer(kills - done, longest, chance)
        with killer.watching():
            run.start(recipe_of(name, ingredients, workers=2), out, [killer])
        done, number, did = done + killer.kills, number + 1, did + killer.did
        faults += differences(out, whole)
    told = ", ".join(f"{count} {what}" for what, count in sorted(did.items()))
    print(f"{name}: {done} kills in {number} runs; found {told}")
    return faults


@app.command()
def main(
    kills: Annotated[int, typer.Option(help="By SIGKILL, of all methods together.")] = 50,
    seed: Annotated[int, typer.Option(help="Decides when and which.")] = 0,
) -> None:
    """Kill worker processes; fail if a run is not what it would have been."""
    torch.set_num_threads(1)
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder, quick_starts():
        home = Path(folder)
        ingredients = write_ingredients(home / "ingredients")
        for number, name in enumerate(SUBJECTS):
            share = kills // len(SUBJECTS) + (number < kills % len(SUBJECTS))
            chance = random.Random(f"{seed} {name}")
            faults += disturbed(name, ingredients, home, share, chance, longest=0.5)
    for fault in faults:
        print(fault)
    raise typer.Exit(1 if faults else 0)


if __name__ == "__main__":
    app()
