"""What the engine adds to bare local training.

    python benchmarks/engine.py [RECIPE] [--rounds 5] [--json]

The same visits twice in one process, round by round in turn: through fullfed (plans, messages,
merge, log, replica) and through a plain PyTorch loop over the very same batches. Prints the
ratio of their times; the engine is to add at most 5 %. Without a recipe, the quickstart's with
FedAvg: a small model on sequences of 23 tokens, where messages weigh most beside training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from fullfed.data.batches import training_batches
from fullfed.engines.simulation import Simulation
from fullfed.federation.client import Worker
from fullfed.federation.log import Log
from fullfed.federation.messages import encode
from fullfed.federation.replica import Replica
from fullfed.federation.server import run_round
from fullfed.quickstart import quickstart_recipe
from fullfed.recipe_file import load_recipe
from fullfed.runs.assembly import Assembly, assemble
from fullfed.sketch import Purpose, Stream
from fullfed.training.loss import answer_loss


def plain_round(assembly: Assembly, cohort: tuple[int, ...], number: int) -> float:
    """Seconds of a cohort's bare training: batches, backward, clip, step."""
    local, seed = assembly.recipe.local, assembly.recipe.federation.seed
    parameters = list(assembly.model.parameters())
    start = [p.detach().clone() for p in parameters]
    began = time.perf_counter()
    for client in cohort:
        optimizer = torch.optim.SGD(parameters, lr=local.learning_rate)
        stream = Stream(seed, Purpose.BATCHES, number, client)
        examples = assembly.data.clients[client].examples
        assert local.steps is not None
        for batch in training_batches(examples, local.batch_size, local.steps, stream):
            optimizer.zero_grad()
            answer_loss(assembly.model, batch).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, local.clip or float("inf"))
            optimizer.step()
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
    return time.perf_counter() - began


def engine_round(assembly: Assembly, worker: Worker, log: Log, number: int) -> float:
    """Seconds of the same round through fullfed, until the update is logged and applied."""
    began = time.perf_counter()
    model = worker.replica.model
    result = run_round(assembly.method, Simulation(worker), number, worker.last, model)
    payload = encode(result.update)
    log.append(payload)
    worker.deliver(payload)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    recipe = arguments.recipe
    assembly = assemble(
        load_recipe(recipe, ["method.name=fedavg"]) if recipe else quickstart_recipe("fedavg")
    )
    clients = {n: client.examples for n, client in enumerate(assembly.data.clients)}
    replica = Replica(assembly.model, assembly.method)
    worker = Worker(replica, assembly.method, clients)
    plain, engine = [], []
    with tempfile.TemporaryDirectory() as folder, Log(Path(folder) / "updates.log") as log:
        for number in range(arguments.rounds + 1):
            cohort = tuple(assembly.method.schedule.visits(number))
            if number == 0:  # warms caches up
                plain_round(assembly, cohort, number)
                engine_round(assembly, worker, log, number)
            elif number % 2:  # whichever is second finds the processor warmer
                plain.append(plain_round(assembly, cohort, number))
                engine.append(engine_round(assembly, worker, log, number))
            else:
                # The plain round trains from, and goes back to, the weights the engine leaves.
                engine.append(engine_round(assembly, worker, log, number))
                plain.append(plain_round(assembly, cohort, number))
    ratios = [b / a for a, b in zip(plain, engine, strict=True)]
    figures = {
        "plain_seconds": statistics.median(plain),
        "engine_seconds": statistics.median(engine),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:>15}  {value:.3f}")


if __name__ == "__main__":
    main()
