"""Loss against simulated time where some visits last long: FedAvg in rounds beside FedBuff.

    python benchmarks/stragglers.py run      # FULLFED_SHARED: the folder with data/ and models/
    python benchmarks/stragglers.py table

recipes/fedbuff.toml: stories260k on natural-instructions, 170 clients, 20 of which train at any
time. How long a visit lasts is half-normal, as in the paper, and nothing else takes time; the unit
is a visit's mean duration. A round of FedAvg lasts as long as its slowest visit; where 20 are asked
and 10 count, as long as the tenth fastest. Rows go to docs/results/stragglers.json as they come;
``run`` goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fullfed
from fullfed.files import write_json
from fullfed.methods.buffered import BufferedArrivals, duration
from fullfed.randomness import Purpose, Stream
from machine import machine

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "docs/results/stragglers.json"
CLIENTS, AT_ONCE, BUFFER = 170, 20, 10
UNTIL = 12.0  # mean durations
TIMES = (2, 4, 6, 9, 12)
FEDAVG, FEDBUFF = ("method={}", "method.name=fedavg"), ("method={}", "method.name=fedbuff")
SKETCH = ("codec.name=sketch", "codec.upload=10400B")  # a hundredth of the model
# What each row changes in the recipe, and of how many that are asked how many count.
METHODS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "fedavg, all 20": (FEDAVG, AT_ONCE),
    "fedavg, the first 10 of 20": ((*FEDAVG, "federation.clients_per_round=10"), BUFFER),
    "fedbuff": (FEDBUFF, 0),
    "fedbuff, rate 2": ((*FEDBUFF, "method.server_step=2.0"), 0),
    "fedavg, all 20, sketch 100x": ((*FEDAVG, *SKETCH), AT_ONCE),
    "fedbuff, sketch 100x": ((*FEDBUFF, *SKETCH), 0),
}


def round_ends(counted: int, seed: int) -> list[float]:
    """When each round ends, as far as the first that does after ``UNTIL``.

    Args:
        counted: of 20 clients, whose reports a round of FedAvg waits for; 0 for FedBuff.
    """
    if counted == 0:
        course = BufferedArrivals(seed, CLIENTS, AT_ONCE, BUFFER)
        ends: Iterator[float] = map(course.time, range(10_000))
    else:
        lasting = (
            sorted(
                duration(Stream(seed, Purpose.ARRIVALS, round=visit))
                for visit in range(first, first + AT_ONCE)
            )[counted - 1]
            for first in range(0, 10_000, AT_ONCE)
        )
        ends = accumulate(lasting)
    found: list[float] = []
    while not found or found[-1] <= UNTIL:
        found.append(next(ends))
    return found


def carry_out(method: str, seed: int) -> dict[str, Any]:
    changes, counted = METHODS[method]
    ends = round_ends(counted, seed)
    overrides = [
        *changes,
        f"federation.rounds={len(ends) - 1}",
        f"federation.seed={seed}",
        "evaluation.every=1",
        "data.test_samples=150",
    ]
    with TemporaryDirectory() as folder:
        recipe = str(ROOT / "recipes/fedbuff.toml")
        run = fullfed.run(recipe, f"{folder}/run", overrides=overrides)
        return {
            "times": [0.0, *(round(end, 3) for end in ends[:-1])],
            "losses": [round(loss, 4) for loss in run.losses],
            "visits": sum(len(line["aggregated"]) for line in run.history),
            "up": run.bytes_up,
            "machine": machine("cpu"),
        }


def run_all(seeds: Sequence[int]) -> None:
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for method in METHODS:
        for seed in seeds:
            name = f"{method} | {seed}"
            if name not in rows:
                rows[name] = carry_out(method, seed)
                write_json(ROWS, rows)
                print(f"{name}: {rows[name]['losses'][-1]:.3f}", flush=True)


def loss_at(row: Mapping[str, Any], time: float) -> float:
    """Of the newest model that there is by then."""
    pairs = zip(row["times"], row["losses"], strict=True)
    return float([loss for end, loss in pairs if end <= time][-1])


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a line a method; means over the seeds, and the standard deviation at the end."""
    heads = " | ".join(f"loss at {time}" for time in TIMES)
    lines = [
        f"| method | seeds | updates | visits | {heads} | sd |",
        "|---" * (len(TIMES) + 5) + "|",
    ]
    for method in METHODS:
        own = [row for name, row in rows.items() if name.rsplit(" | ", 1)[0] == method]
        if not own:
            continue
        losses = [statistics.mean(loss_at(row, time) for row in own) for time in TIMES]
        last = [loss_at(row, TIMES[-1]) for row in own]
        spread = f"{statistics.stdev(last):.3f}" if len(last) > 1 else ""
        updates = statistics.mean(len(row["times"]) - 1 for row in own)
        visits = statistics.mean(row["visits"] for row in own)
        cells = " | ".join(f"{loss:.3f}" for loss in losses)
        lines.append(
            f"| {method} | {len(own)} | {updates:.0f} | {visits:.0f} | {cells} | {spread} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if arguments.what == "run":
        run_all(arguments.seeds)
    else:
        print(table(json.loads(ROWS.read_text())))


if __name__ == "__main__":
    main()
