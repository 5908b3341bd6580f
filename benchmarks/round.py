"""What a round takes beyond its forward passes, backward passes and steps.

    python benchmarks/round.py RECIPE [--methods fedavg ferret] [--rounds 3] [--set KEY=VALUE ...]

Whole rounds in one process, the methods in turn: plans, visits, messages, merge, log, replica. The
methods have their default options, and what the recipe says of Ferret's bytes.

"bare" are a round's seconds in forward and backward passes, clipping and steps, of the very same
visits. All else is in per cent of them, the median of the rounds; one that warms caches up comes
before:

- passes: the forward passes that the automatic server step measures with.
- beyond: all of the round but bare and these passes. It is the sum of
- visits: batches, keeping the weights of before and putting them back, a new optimizer, and what
  is between the passes;
- measuring: of the automatic step, without its passes;
- encoding: from trained weights to a report;
- messages: to bytes and back, and checking them;
- merging: the server's aggregation;
- applying: the update, into the log and into the replica.

Seconds are those of the processor with one thread, which others on the machine hardly disturb, or
with --wall those of the clock. engine.py has FedAvg beside a plain PyTorch loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast
from unittest import mock

import torch

from fullfed.config import Recipe
from fullfed.engines.simulation import Simulation
from fullfed.federation.client import Worker
from fullfed.federation.log import Log
from fullfed.federation.messages import Plan, Update, Value, encode
from fullfed.federation.replica import Replica
from fullfed.federation.server import run_round
from fullfed.methods.server_step import StepRule, Trained
from fullfed.recipe_file import load_recipe
from fullfed.runs.assembly import assemble
from fullfed.runs.curvature import with_scales
from fullfed.training import first_order
from machine import machine

PARTS = ("visits", "measuring", "encoding", "messages", "merging", "applying")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Stopwatch:
    """Adds up the seconds of what it times."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, act: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        def timed(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
            began = time.perf_counter()
            try:
                return act(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - began

        return timed

    def taken(self) -> float:
        """The seconds since it was asked last."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class TimedStep:
    """A server step's rule that keeps the seconds of what clients measure for it."""

    def __init__(self, rule: StepRule) -> None:
        self._rule = rule
        self.passes, self.all = Stopwatch(), Stopwatch()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def measure(
        self, trained: Trained, plan: Plan, last: Update | None, coordinates: float
    ) -> dict[str, Value]:
        watched = replace(trained, measure=self.passes.of(trained.measure))
        return self.all.of(self._rule.measure)(watched, plan, last, coordinates)


class Federation:
    """One method's rounds on a model of its own."""

    def __init__(self, recipe: Recipe, log: Log) -> None:
        assembly = assemble(recipe)
        method = with_scales(assembly.method, assembly.model)
        self._step, self._bare = TimedStep(method.step), Stopwatch()
        self._method = replace(method, step=cast(StepRule, self._step))
        clients = {n: client.examples for n, client in enumerate(assembly.data.clients)}
        self._worker = Worker(Replica(assembly.model, self._method), self._method, clients)
        self._log = log
        self.elements = method.setting.elements
        self.cohort = len(method.plans(0, None))

    def round(self, number: int) -> dict[str, float]:
        """Seconds of a round until its update is logged and applied, by parts."""
        worker, began = self._worker, time.perf_counter()
        model = worker.replica.model
        with mock.patch.object(first_order, "passes", self._timed_passes):
            result = run_round(self._method, Simulation(worker), number, worker.last, model)
        payload, merged = encode(result.update), time.perf_counter()
        self._log.append(payload)
        worker.deliver(payload)
        ended = time.perf_counter()
        passes, bare = self._step.passes.taken(), self._bare.taken()
        measured = self._step.all.taken()
        parts = {
            "bare": bare,
            "passes": passes,
            "visits": result.train_seconds - measured - bare,
            "measuring": measured - passes,
            "encoding": result.encode_seconds,
            "merging": result.aggregate_seconds,
            "applying": ended - merged,
        }
        return {**parts, "messages": ended - began - sum(parts.values())}

    @contextmanager
    def _timed_passes(self, *arguments: Any) -> Iterator[tuple[Any, Any]]:
        with (
            _passes(*arguments) as (steps, backward),
            mock.patch.object(steps, "take", self._bare.of(steps.take)),
        ):
            yield steps, self._bare.of(backward)


_passes = first_order.passes


def figures(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One method's, in per cent of the bare seconds."""
    names = ("passes", *PARTS)
    shares = [{name: 100 * own[name] / own["bare"] for name in names} for own in rounds]
    beyond = [sum(own[part] for part in PARTS) for own in shares]
    middle = {name: statistics.median(own[name] for own in shares) for name in names}
    bare = statistics.median(own["bare"] for own in rounds)
    return {"bare_seconds": bare, "beyond": statistics.median(beyond), **middle}


def recipe_of(path: Path, method: str, changes: Sequence[str]) -> Recipe:
    recipe = load_recipe(path, changes)
    if recipe.method.name == method:
        return recipe
    return load_recipe(path, [*changes, "method={}", f"method.name={method}"])


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    federations = {
        name: Federation(recipe_of(options.recipe, name, options.set), Log(folder / name))
        for name in options.methods
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in federations}
    for number in range(options.rounds + 1):
        for name, federation in federations.items():
            rounds[name].append(federation.round(number))
    one = next(iter(federations.values()))
    found = {name: figures(own[1:]) for name, own in rounds.items()}
    return {"elements": one.elements, "cohort": one.cohort, "methods": found}


def table(found: Mapping[str, Any]) -> str:
    """Markdown, one row a method."""
    columns = ("beyond", *PARTS, "passes")
    lines = [
        f"{found['elements']:,} parameters, {found['cohort']} clients a round",
        "",
        f"| % of bare | bare | {' | '.join(columns)} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for method, own in found["methods"].items():
        shares = " | ".join(f"{own[name]:.2f}" for name in columns)
        lines.append(f"| {method} | {own['bare_seconds']:.1f} s | {shares} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--methods", nargs="+", default=["fedavg", "ferret"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="recipe keys")
    parser.add_argument("--wall", action="store_true", help="seconds of the clock, all threads")
    parser.add_argument("--json", action="store_true", help="figures and machine")
    options = parser.parse_args()
    if not options.wall:
        torch.set_num_threads(1)
        time.perf_counter = time.process_time
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    if options.json:
        print(json.dumps({"machine": machine("cpu"), **found}, indent=1))
    else:
        print(table(found))


if __name__ == "__main__":
    main()
