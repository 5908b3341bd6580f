"""What the guards of a federation cost, and how near honest work comes to their bounds.

python benchmarks/guards.py threads            # ten steps, by how long threads spin
python benchmarks/guards.py inbox              # a dense report of 10**8 numbers
python benchmarks/guards.py drift RUN...       # the distances that limits.most_drift bounds
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from fullfed.config import parse_recipe
from fullfed.engines.node_drift import reaches
from fullfed.federation.messages import Report, decode, encode
from fullfed.federation.replica import norm
from fullfed.quickstart import quickstart_recipe
from fullfed.runs.assembly import assemble
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import load_base, replay

Result = TypeVar("Result")

_NUMBERS = 10**8
_VISITS = 5
_LONGEST = 120.0  # seconds that a measurement under load may take


def threads(model: str) -> None:
    """Median seconds of a visit of ten steps, alone and beside two busy processes."""
    ways = {
        "two threads, torch's default": {},
        "two threads, GOMP_SPINCOUNT=50000": {"GOMP_SPINCOUNT": "50000"},
        "two threads, OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
        "one thread": {"OMP_NUM_THREADS": "1"},
    }
    print("| | alone | beside two busy processes |\n|---|---|---|")
    for name, settings in ways.items():
        alone = _in_process(settings, model)
        with _busy(2):
            beside = _in_process(settings, model)
        print(f"| {name} | {alone} | {beside} |", flush=True)


def _in_process(settings: dict[str, str], model: str) -> str:
    environment = {"OMP_NUM_THREADS": "2", **os.environ, **settings}
    command = [sys.executable, __file__, "visits", model]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_LONGEST, check=True
        )
    except subprocess.TimeoutExpired:
        return f"more than {_LONGEST / _VISITS:.0f} s"
    return done.stdout.strip()


@contextmanager
def _busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def visits(model: str) -> None:
    """The visits themselves, in a process of their own."""
    tables = quickstart_recipe("fedavg").model_dump(mode="json", exclude_none=True)
    tables["model"]["path"] = model
    assembly = assemble(parse_recipe(tables, "the benchmark"))
    plan = assembly.method.plans(0, None)[0]
    examples, seconds = assembly.data.clients[plan.client].examples, []
    for _ in range(_VISITS):
        began = time.perf_counter()
        assembly.method.train(assembly.model, plan, examples, None)
        seconds.append(time.perf_counter() - began)
    print(f"{statistics.median(seconds):.2f} s")


def inbox() -> None:
    """Seconds of each thing that is done to a report, on one thread."""
    torch.set_num_threads(1)
    weights = torch.ones(_NUMBERS)
    payload = encode(Report(0, 0, 1, 1.0, {}, {"weights": weights + 1e-3}))
    report = _timed("decode and validate", lambda: decode(payload, Report))
    _timed("norm of the change", lambda: norm([report.tensors["weights"].double().sub_(weights)]))
    with tempfile.TemporaryFile() as file:

        def pass_through() -> bytes:
            file.write(payload)
            file.seek(0)
            return file.read()

        again = _timed("write and read", pass_through)
    _timed("decode again", lambda: decode(again, Report))


def _timed(what: str, work: Callable[[], Result]) -> Result:
    began = time.perf_counter()
    result = work()
    print(f"{what}: {time.perf_counter() - began:.2f} s")
    return result


def drift(runs: list[Path]) -> None:
    """Of each run's last model, the tensor that is furthest as a share of what it may go."""
    for path in runs:
        folder = RunFolder(path)
        start, _, _ = load_base(folder)
        before = {name: tensor.detach().clone() for name, tensor in start.parameters().items()}
        model, _ = replay(folder)
        norms = {name: norm([tensor]) for name, tensor in before.items()}
        reach = reaches(norms, {name: tensor.numel() for name, tensor in before.items()})
        now = dict(model.named_parameters())
        shares = {name: norm([now[name] - t]) / reach[name] for name, t in before.items()}
        furthest = max(shares, key=lambda name: shares[name])
        print(f"{path}: {shares[furthest]:.3f} ({furthest})")


def main() -> None:
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("threads", "visits"):
        one = parts.add_parser(name)
        one.add_argument("model", nargs="?", default="builtin")
    parts.add_parser("inbox")
    parts.add_parser("drift").add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    if options.part == "threads":
        threads(options.model)
    elif options.part == "visits":
        visits(options.model)
    elif options.part == "inbox":
        inbox()
    else:
        drift(options.runs)


if __name__ == "__main__":
    main()
