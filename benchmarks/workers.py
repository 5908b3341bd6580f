"""What worker processes gain: rounds a second of one simulation, in one, two and more processes.

    python benchmarks/workers.py [--rounds 4] [--repeats 2] [--json]

The same run of each model (code-alpaca, eight clients a round, ten steps of batch 4 each) with two
workers of one thread, with one process of one thread, and with one of two: in turn, and again. A
round's seconds are all between two rounds' ends but for evaluation; the first round, in which
processes start, is left out. Logs of one thread must be equal, whatever the workers. Needs two
quiet cores, and FULLFED_SHARED.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullfed.config import Recipe
from fullfed.recipe_file import load_recipe
from fullfed.runs.folder import RunFolder
from fullfed.runs.run import start
from fullfed.units import bytes_text
from machine import machine

RECIPE = Path(__file__).parents[1] / "recipes" / "code-alpaca.toml"
MODELS = ("stories260k", "base-4m")
COHORT = 8
WARM = 1  # rounds that are left out


@dataclass(frozen=True)
class Setup:
    """In how many processes, of how many threads each."""

    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads}"


def recipe_of(model: str, method: str, setup: Setup, rounds: int) -> Recipe:
    chosen = [f"method.name={method}"]
    if method == "ferret":
        chosen += ["method.coordinates=1000"]
    return load_recipe(
        RECIPE,
        [
            f"model.path=$FULLFED_SHARED/models/{model}",
            "method={}",
            *chosen,
            f"federation.rounds={rounds}",
            f"federation.clients_per_round={COHORT}",
            f"federation.snapshot_every={rounds + 1}",
            f"evaluation.every={rounds}",
            'evaluation.metrics=["loss"]',
            "data.test_samples=64",
            f"simulation.workers={setup.workers}",
            f"simulation.threads={setup.threads}",
        ],
    )


def carry_out(recipe: Recipe, out: Path) -> tuple[list[float], int]:
    """Seconds of each round that counts, and the most memory of all processes together."""
    start(recipe, out)
    seconds = [line["seconds"] for line in RunFolder(out).metrics()]
    each = [one["elapsed"] - one["evaluate"] for one in seconds]
    return each[WARM:], RunFolder(out).summary()["peak_memory_bytes"]


def measure(
    model: str, method: str, setups: list[Setup], rounds: int, repeats: int
) -> dict[str, Any]:
    """Median seconds of a round in each setup, its spread and its memory."""
    taken: dict[Setup, list[float]] = {setup: [] for setup in setups}
    memory: dict[Setup, int] = {}
    logs: set[bytes] = set()
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            for number, setup in enumerate(setups):
                out = Path(folder) / f"{repeat}-{number}"
                recipe = recipe_of(model, method, setup, rounds + WARM)
                seconds, memory[setup] = carry_out(recipe, out)
                taken[setup] += seconds
                told = ", ".join(f"{one:.2f}" for one in seconds)
                print(f"{model}, {setup}: {told} s", file=sys.stderr, flush=True)
                if setup.threads == 1:
                    logs.add((out / "updates.log").read_bytes())
    assert len(logs) == 1, "runs of one thread have different logs"
    return {
        str(setup): {
            "seconds": statistics.median(seconds),
            "least": min(seconds),
            "most": max(seconds),
            "memory": memory[setup],
        }
        for setup, seconds in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--method", default="ferret")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    many, one = Setup(arguments.workers, 1), Setup(1, 1)
    setups = [many, one, Setup(1, arguments.workers)]
    found = {
        model: measure(model, arguments.method, setups, arguments.rounds, arguments.repeats)
        for model in arguments.models
    }
    if arguments.json:
        print(json.dumps({"machine": machine("cpu"), "method": arguments.method, **found}))
        return
    print(f"{arguments.method}, {COHORT} visits of ten steps a round; processes x threads of each")
    for model, by_setup in found.items():
        for setup, figures in by_setup.items():
            gain = by_setup[str(one)]["seconds"] / figures["seconds"]
            spread = f"{figures['least']:.2f} to {figures['most']:.2f}"
            print(
                f"{model:>12}  {setup:>5}  {1 / figures['seconds']:6.3f} rounds/s  ({spread} s)  "
                f"{gain:.2f} times 1 x 1  {bytes_text(figures['memory'])}"
            )


if __name__ == "__main__":
    main()
