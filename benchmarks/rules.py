"""Time and memory of each aggregation rule beside the plain mean, for docs/results/attacks.md.

    python benchmarks/rules.py run
    python benchmarks/rules.py table

Reports of 10, 100 and 1,000 clients: K = 44,288 coordinates in one bit each, on shared directions.
Each measurement is a process
of its own. It decodes reports one at a time, as the server does, and adds them up. Rows go to
docs/results/rules.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fullfed.federation.messages import Plan, Report
from fullfed.files import write_json
from fullfed.methods.aggregation import Aggregation
from fullfed.methods.catalogue import AGGREGATIONS
from fullfed.methods.codecs.codec import Change, Codec
from fullfed.methods.codecs.sketch import Sketch
from fullfed.methods.codecs.sketch_options import SketchOptions
from fullfed.methods.parts import PartReports
from machine import machine

ROWS = Path(__file__).resolve().parents[1] / "docs/results/rules.json"
COORDINATES, COUNTS = 44_288, (10, 100, 1000)
SHAPES = {"weights": torch.Size([4 * COORDINATES])}
REPEATS = 3
RULES = (
    *("mean", "clipped-mean", "trimmed-mean", "median", "krum", "geometric-median"),
    "majority-vote",
)


def measure(name: str, clients: int) -> dict[str, float]:
    """Median seconds of an aggregation and of decoding alone, and the most bytes that tensors need
    meanwhile, beside the reports."""
    torch.set_num_threads(1)
    entry = AGGREGATIONS[name]
    rule: Aggregation = entry.build(entry.options())
    options = SketchOptions(coordinates=COORDINATES, bits=1, seeds="shared")
    codec = rule.coding(Sketch(0, options))
    plans = [Plan(0, client) for client in range(clients)]
    reports = [_report(codec, plan) for plan in plans]
    spent, decoding = [], []
    _aggregate(codec, rule, plans[:3], reports[:3])  # compiled
    for _ in range(REPEATS):
        began = time.perf_counter()
        _aggregate(codec, rule, plans, reports)
        spent.append(time.perf_counter() - began)
        began = time.perf_counter()
        for report, plan in zip(reports, plans, strict=True):
            codec.decode(report, plan, SHAPES)
        decoding.append(time.perf_counter() - began)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        _aggregate(codec, rule, plans, reports)
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return {
        "seconds": statistics.median(spent),
        "decode_seconds": statistics.median(decoding),
        "bytes": max(accumulate(changes)),
    }


def _report(codec: Codec, plan: Plan) -> Report:
    """Of a change that clients have half of the energy of in common."""
    shared, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1 + plan.client)
    shape = SHAPES["weights"]
    after = torch.randn(shape, generator=shared) + torch.randn(shape, generator=own)
    change = Change({"weights": torch.zeros(shape)}, {"weights": after})
    encoded = codec.encode(change, plan, SHAPES)
    return Report(0, plan.client, 1, 1.0, encoded.values, encoded.tensors)


def _aggregate(codec: Codec, rule: Aggregation, plans: list[Plan], reports: list[Report]) -> None:
    part = PartReports(codec, rule, plans[0], SHAPES)
    for report, plan in zip(reports, plans, strict=True):
        part.add(report, plan)
    part.encoded(None)


def run_all() -> None:
    rows: dict[str, Any] = {"machine": machine("cpu")}
    for clients in COUNTS:
        for name in RULES:
            command = [sys.executable, __file__, "one", name, str(clients)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            rows[f"{name} | {clients}"] = json.loads(done.stdout)
            write_json(ROWS, rows)
            print(name, clients, done.stdout.strip(), flush=True)


def table(rows: Mapping[str, Any]) -> str:
    """Markdown: a line a rule; for each number of clients seconds, times the mean's, and MB."""
    heads = [f"{n:,} clients: s | times the mean's | MB" for n in COUNTS]
    lines = [f"| rule | {' | '.join(heads)} |", "|---" * (1 + 3 * len(COUNTS)) + "|"]
    for name in RULES:
        cells = []
        for clients in COUNTS:
            own, mean = rows[f"{name} | {clients}"], rows[f"mean | {clients}"]
            ratio = own["seconds"] / mean["seconds"]
            cells.append(f"{own['seconds']:.3f} | {ratio:.1f} | {own['bytes'] / 1e6:.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    shares = (rows[f"mean | {n}"] for n in COUNTS)
    share = max(row["decode_seconds"] / row["seconds"] for row in shares)
    return "\n".join([*lines, "", f"Of the mean's time up to {share:.0%} is decoding."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table", "one"))
    parser.add_argument("name", nargs="?", help="the rule of one")
    parser.add_argument("clients", nargs="?", type=int)
    options = parser.parse_args()
    if options.command == "run":
        run_all()
    elif options.command == "table":
        print(table(json.loads(ROWS.read_text())))
    else:
        print(json.dumps(measure(options.name, options.clients)))


if __name__ == "__main__":
    main()
