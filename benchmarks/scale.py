"""What a federation of many clients costs the machine that simulates it.

    python benchmarks/scale.py [--clients 10000] [--cohort 100] [--samples 10] [--failures 0.3]
        [--rounds 5] [--method ferret] [--set KEY=VALUE ...] [--json]

The embedded model learns the quickstart's generated tasks, dealt to the clients at random: once
as many clients as are in a cohort, once all of them, with the same cohort, the same samples a
client and the same share of visits that fail. Each federation is an ordinary run in a process of
its own. Prints the peak memory after the first and after the last round, what the additional
clients added to it, the seconds a round takes without evaluation, and those before the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w

from fullfed.quickstart.kinds import draw_examples
from fullfed.quickstart.tasks import FEDERATED
from fullfed.runs.folder import RunFolder

_TEST_SAMPLES = 100


def write_samples(path: Path, count: int) -> None:
    """``count`` training samples, and some to hold out, of all the quickstart's tasks in turn."""
    each = -(-(count + _TEST_SAMPLES) // len(FEDERATED))
    by_kind = [draw_examples(name, kind, each, 0, "train") for name, kind in FEDERATED.items()]
    with path.open("w", encoding="utf-8") as file:
        for one in zip(*by_kind, strict=True):
            for e in one:
                record = {"instruction": e.instruction, "input": e.input, "output": e.output}
                file.write(json.dumps(record) + "\n")


def recipe(arguments: argparse.Namespace, data: Path, clients: int) -> dict[str, Any]:
    options = {"coordinates": 512} if arguments.method == "ferret" else {}
    return {
        "model": {"path": "builtin"},
        "data": {
            "train": str(data),
            "test_samples": _TEST_SAMPLES,
            "partition": "iid",
            "clients": clients,
        },
        "federation": {"rounds": arguments.rounds, "clients_per_round": arguments.cohort},
        "local": {"learning_rate": 0.1, "steps": 2, "batch_size": 4},
        "method": {"name": arguments.method, **options},
        "simulation": {"failures": arguments.failures},
        "evaluation": {"every": arguments.rounds},
    }


def measure(arguments: argparse.Namespace, clients: int, folder: Path) -> dict[str, float]:
    """Carry out one federation; return its figures."""
    data, out = folder / "samples.jsonl", folder / "run"
    write_samples(data, clients * arguments.samples)
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe(arguments, data, clients)))
    command = [sys.executable, "-m", "fullfed", "run", str(folder / "recipe.toml")]
    changes = [part for change in arguments.set for part in ("--set", change)]
    began = time.perf_counter()
    subprocess.run([*command, *changes, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    run = RunFolder(out)
    records, seconds = run.metrics(), run.summary()["seconds"]
    worked = seconds["train"] + seconds["encode"] + seconds["aggregate"]
    visits = sum(len(record["cohort"]) for record in records)
    return {
        "clients": clients,
        "visits": visits,
        "failed visits": sum(len(record["refused"]) for record in records),
        "peak after round 1, MiB": records[0]["peak_memory_bytes"] / 2**20,
        "peak after the last, MiB": records[-1]["peak_memory_bytes"] / 2**20,
        "seconds a round": worked / len(records),
        "seconds beside rounds": wall - worked,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--failures", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", default="ferret")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = []
    for clients in (arguments.cohort, arguments.clients):
        with tempfile.TemporaryDirectory() as folder:
            figures.append(measure(arguments, clients, Path(folder)))
    few, many = figures
    grown = many["peak after the last, MiB"] - few["peak after the last, MiB"]
    each = grown * 1024 / max(arguments.clients - arguments.cohort, 1)
    if arguments.json:
        print(json.dumps({"few": few, "many": many, "KiB a client": each}))
        return
    for name in few:
        print(f"{name:>26}  {few[name]:>12,.1f}  {many[name]:>12,.1f}")
    print(f"{'KiB for each more client':>26}  {'':>12}  {each:>12,.2f}")


if __name__ == "__main__":
    main()
