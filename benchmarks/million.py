"""What a server of a million clients would need: formulas, and the server's own code beside them.

    python benchmarks/million.py run         # a few minutes; rows to docs/results/million.json
    python benchmarks/million.py table       # measured and reckoned, side by side
    python benchmarks/million.py plan        # 10^6 clients, 0.1 % of them a round

``run`` carries out whole runs with the server's code: schedule, inbox, aggregation, log, accounts.
Only the clients are not there: one report is encoded each round and sent under the names of the
whole cohort, which is not counted. The embedded model, a sketch of 4 KiB on shared directions. Each
point is a process of its own; seconds and memory are measured in two runs, because tracing
allocations takes time. Seconds are of the processor, so that other work on the machine shows less.
Memory is the most that Python and NumPy hold in a round: neither libraries nor the model's tensors.
There all clients are known to have come before, so that what is kept of each counts.

The constants of seconds and memory are fitted to the points up to 10^4 clients, but for the largest
one. Bytes have no constants: they follow from the formats and from how clients are drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fullfed.config import Recipe, parse_recipe
from fullfed.federation.client import Worker
from fullfed.federation.inbox import Arrival
from fullfed.federation.log import MAGIC, Log
from fullfed.federation.messages import Plan, Report, decode, encode
from fullfed.federation.server import Traffic
from fullfed.files import write_json
from fullfed.methods.codecs.codec import Change
from fullfed.methods.composition import Composition
from fullfed.payloads import Payload
from fullfed.runs.assembly import assemble_server
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.run import carry_out
from fullfed.units import bytes_text, seconds_text
from machine import machine

ROWS = Path(__file__).resolve().parents[1] / "docs/results/million.json"
ROUNDS, TRACED = 12, 3  # of a point's two runs
DRAWS = 20  # of a cohort, whose time is measured by itself
# (clients, cohort); the constants are fitted to all but the last two.
POINTS = ((100, 10), (1000, 10), (1000, 100), (10_000, 10), (10_000, 100), (10_000, 1000))
LARGEST = (1_000_000, 1000)
TOLERANCE = {"log": 0.001, "lines": 0.05, "down": 0.1, "seconds": 0.3, "memory": 0.3}
_HEAD = 48  # bytes of a record of the log beside its payload
_LINE = 870  # bytes of a round's line beside its clients


@dataclass
class Echoes:
    """An Engine of a cohort that all send one report.

    Attributes:
        made: the seconds of each round that went into making reports, and are not the server's.
    """

    worker: Worker
    traffic: Traffic
    made: list[float] = field(default_factory=list)

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        started = time.process_time()
        replica = self.worker.replica
        method = replica.method
        assert isinstance(method, Composition)
        before = {n: p.detach().clone() for n, p in replica.model.named_parameters()}
        after = {n: p + 1e-3 * torch.randn_like(p) for n, p in before.items()}
        order = decode(plans[min(plans)], Plan)
        encoded = method.codec.encode(Change(before, after), order, method.setting.shapes)
        self.made.append(time.process_time() - started)
        for client, plan in plans.items():
            down = len(plan) + self.traffic.catch_up(client, replica.version)
            started = time.process_time()
            report = Report(order.round, client, 10, 2.0, encoded.values, encoded.tensors)
            payload = encode(report)
            self.made[-1] += time.process_time() - started
            yield Arrival(client, payload, down=down)


class Watch(Callback):
    """Notes when rounds are over, and forgets what was allocated before the second.

    Attributes:
        ended: the processor's seconds so far, at each round's end.
        held: bytes that are allocated at the end of a round.
    """

    def __init__(self) -> None:
        self.ended: list[float] = []
        self.held = 0

    def on_round_begin(self, round: int) -> None:
        if round == 1 and tracemalloc.is_tracing():
            tracemalloc.reset_peak()

    def on_round_end(self, record: dict[str, Any]) -> None:
        self.ended.append(time.process_time())
        self.held = tracemalloc.get_traced_memory()[0]


def recipe(cohort: int, rounds: int) -> Recipe:
    tables = {
        "model": {"path": "builtin"},
        "data": {"train": "builtin", "test_samples": 1},
        "federation": {"rounds": rounds, "clients_per_round": cohort},
        "method": {"name": "fedavg", "server_step": 0.001},
        "codec": {"name": "sketch", "upload": "4KiB", "seeds": "shared", "scales": "none"},
        "aggregation": {"name": "mean"},
    }
    return parse_recipe(tables, "benchmarks/million.py")


def measure(clients: int, cohort: int, traced: bool) -> dict[str, Any]:
    """One run; what it took a round, or with ``traced`` the most memory that it had allocated."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rounds, engines = TRACED if traced else ROUNDS, list[Echoes]()

    def connect(recipe: Recipe, worker: Worker, log: Log, traffic: Traffic) -> Echoes:
        if traced:
            for client in range(clients):
                traffic.found(client, 0)
        engines.append(Echoes(worker, traffic))
        return engines[0]

    assembly = assemble_server(recipe(cohort, rounds), clients)
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path) / "run")
        folder.create(assembly.recipe)
        if traced:
            tracemalloc.start()
        watch = Watch()
        carry_out(folder, assembly, [watch], connect, name="0" * 16)
        if traced:
            held, peak = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            assembly.method.plans(0, None)
            drawing = tracemalloc.get_traced_memory()[1] - held
            return {"memory": peak, "held": watch.held, "drawing_memory": drawing}
        lines = folder.metrics()
        # Kernels are compiled in the first round.
        spent = [after - before for before, after in pairwise(watch.ended)]
        server = [all - made for all, made in zip(spent, engines[0].made[1:], strict=True)]
        drawn = []
        for round in range(DRAWS):
            started = time.process_time()
            assembly.method.plans(round, None)
            drawn.append(time.process_time() - started)
        return {
            "report": lines[0]["bytes"]["up"] // cohort,
            "update": lines[0]["bytes"]["update"],
            "snapshot": engines[0].worker.snapshot_bytes(),
            "plan": lines[0]["bytes"]["down"] // cohort,
            "log": folder.log_file.stat().st_size,
            "lines": folder.metrics_file.stat().st_size,
            "down": sum(line["bytes"]["down"] for line in lines),
            "drawing": statistics.median(drawn),
            "seconds": statistics.median(server),
        }


@dataclass(frozen=True)
class Federation:
    """What a run's bytes follow from.

    Attributes:
        clients, cohort, rounds: N, n and R.
        plan, report, update: bytes of a client's plan and report, and of a round's update.
        snapshot: bytes of the model whole.
    """

    clients: int
    cohort: int
    rounds: int
    plan: int
    report: int
    update: int
    snapshot: int

    @property
    def log(self) -> int:
        """Bytes of the log."""
        return len(MAGIC) + self.rounds * (_HEAD + self.update)

    @property
    def lines(self) -> float:
        """Bytes of metrics.jsonl: each client of a cohort by its number in four lists, in two of
        them with the bytes that it sent or was sent."""
        digits = float(np.mean([len(str(n)) for n in range(self.clients)]))
        sent = len(str(self.report)) + len(str(round(self.down / self.rounds / self.cohort)))
        of_client = 2 * (digits + len(", ")) + 2 * (digits + len('"": , ')) + sent
        return self.rounds * (_LINE + self.cohort * of_client)

    @property
    def down(self) -> float:
        """Bytes that the server sends: plans, and what clients missed.

        A client comes with probability p = n / N in each round, so the updates since its last visit
        are geometric in number, and at most as many as there are. It is sent these, or a snapshot
        where that is less.
        """
        return self.cohort * sum(self.plan + self.late(round) for round in range(self.rounds))

    def late(self, round: int) -> float:
        """The mean bytes that a client of a round is sent of what it missed."""
        if round == 0:
            return 0.0
        p, missed = self.cohort / self.clients, np.arange(1, round + 1)
        share = p * (1 - p) ** (missed - 1.0)
        share[-1] = (1 - p) ** (round - 1.0)  # or it was never there
        whole = np.where(missed > 1, float(self.snapshot), np.inf)
        return float(share @ np.minimum(missed * self.update, whole))


def fitted(rows: Mapping[str, Mapping[str, Any]], what: str) -> tuple[float, float, float]:
    """(a, b, c) of a + b N + c n, of least relative error at the points that they are fitted to.

    b is that of drawing a cohort, and of memory that of what is held from round to round: beside a
    round's reports both would be lost.
    """
    rest, alone = {"seconds": ("seconds", "drawing"), "memory": ("memory", "held")}[what]
    points = POINTS[:-1]
    terms = np.array([(1.0, *point) for point in points])
    by_name = [rows[name_of(*point)] for point in points]
    _, b = _least_relative(terms[:, :2], np.array([row[alone] for row in by_name]))
    left = np.array([row[rest] for row in by_name]) - b * terms[:, 1]
    a, c = _least_relative(terms[:, [0, 2]], left)
    return a, b, c


def drawing_memory(rows: Mapping[str, Mapping[str, Any]], clients: int) -> float:
    """Bytes that are needed while a cohort is drawn, before a round's own."""
    points = POINTS[:-1]
    needed = [rows[name_of(*point)]["drawing_memory"] / point[0] for point in points[-2:]]
    return float(statistics.mean(needed)) * clients


def _least_relative(terms: NDArray[np.float64], found: NDArray[np.float64]) -> list[float]:
    scaled = terms / found[:, None]
    return [float(x) for x in np.linalg.lstsq(scaled, np.ones(len(found)), rcond=None)[0]]


def name_of(clients: int, cohort: int) -> str:
    return f"{clients} clients, {cohort} a round"


def reckoned(rows: Mapping[str, Mapping[str, Any]], clients: int, cohort: int) -> dict[str, float]:
    """What the formulas say of a measured point."""
    row, sizes = rows[name_of(clients, cohort)], ("plan", "report", "update", "snapshot")
    ours = Federation(clients, cohort, ROUNDS, *(row[size] for size in sizes))
    found = {"log": float(ours.log), "lines": ours.lines, "down": ours.down}
    for what in ("seconds", "memory"):
        a, b, c = fitted(rows, what)
        found[what] = a + b * clients + c * cohort
    # A round needs memory of its own when the cohort is drawn: the more of the two counts.
    held = fitted(rows, "memory")[1] * clients + drawing_memory(rows, clients)
    found["memory"] = max(found["memory"], rows[name_of(*POINTS[0])]["held"] + held)
    return found


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: measured / reckoned, and where they differ by more than the tolerance."""
    said = {"log": bytes_text, "lines": bytes_text, "down": bytes_text, "memory": bytes_text}
    lines = [
        "| clients | a round | log | metrics.jsonl | sent | seconds a round | memory |",
        "|---" * 7 + "|",
    ]
    outside = []
    for clients, cohort in (*POINTS, LARGEST):
        row, ours = rows[name_of(clients, cohort)], reckoned(rows, clients, cohort)
        cells = []
        for what in ("log", "lines", "down", "seconds", "memory"):
            text = said.get(what, lambda value: f"{value:.3f}")
            cells.append(f"{text(row[what])} / {text(ours[what])}")
            if abs(ours[what] / row[what] - 1) > TOLERANCE[what]:
                outside.append(f"{name_of(clients, cohort)}: {what}")
        lines.append(f"| {clients:,} | {cohort:,} | {' | '.join(cells)} |")
    for what, unit, scale in (("seconds", "ms", 1e3), ("memory", "KiB", 1 / 1024)):
        a, b, c = (constant * scale for constant in fitted(rows, what))
        lines.append(f"\n{what}: {a:.4g} {unit} + N * {b:.4g} {unit} + n * {c:.4g} {unit}")
    lines.append(f"\noutside the tolerance: {', '.join(outside) or 'nothing'}")
    return "\n".join(lines)


def plan(rows: Mapping[str, Mapping[str, Any]], parameters: int, report: int, rounds: int) -> str:
    """A million clients, 0.1 % of them a round, by the formulas.

    Args:
        parameters: of the model, in float32.
        report: bytes of a client's.
        rounds: of the run.
    """
    clients, cohort = LARGEST
    known = rows[name_of(*LARGEST)]
    ours = Federation(clients, cohort, rounds, known["plan"], report, report, 4 * parameters)
    a, b, c = fitted(rows, "seconds")
    longer = report / known["report"]  # at most: what a report costs beside its numbers stays
    seconds = a + b * clients + c * cohort * longer
    held = reckoned(rows, clients, cohort)["memory"] + 4 * parameters
    late = ours.late(rounds - 1)
    own = 4 * parameters < report * cohort
    lines = {
        "reports that arrive in a round": bytes_text(cohort * report),
        "the server's work in a round, one core, at most": seconds_text(seconds),
        "the server's memory, model and a round's reports included": bytes_text(
            held + min(cohort * report, 64 << 20)
        ),
        f"log after {rounds:,} rounds": bytes_text(ours.log),
        "the same with each client's own directions": bytes_text(rounds * cohort * report),
        f"metrics.jsonl after {rounds:,} rounds": bytes_text(ours.lines),
        "what a client misses between two visits, at the end": bytes_text(late),
        "sent in a round, at the end": bytes_text(cohort * (known["plan"] + late)),
        "of that by the server itself, with log and snapshots in a CDN": bytes_text(
            cohort * known["plan"]
        ),
        "the model once for everybody": bytes_text(clients * 4 * parameters),
        "an update with own directions is longer than the model": "yes" if own else "no",
    }
    return "\n".join(f"| {what} | {value} |" for what, value in lines.items())


def run_all() -> None:
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for clients, cohort in (*POINTS, LARGEST):
        name = name_of(clients, cohort)
        if name in rows:
            continue
        row: dict[str, Any] = {}
        for traced in ("", "--traced"):
            place = [str(clients), str(cohort), *([traced] if traced else [])]
            command = [sys.executable, __file__, "point", *place]
            row |= json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        rows[name] = {**row, "machine": machine("cpu")}
        write_json(ROWS, rows)
        print(f"{name}: {row['seconds']:.3f} s, {bytes_text(row['memory'])}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table", "plan", "point"))
    parser.add_argument("point", type=int, nargs="*", help="clients and cohort of a single point")
    parser.add_argument("--traced", action="store_true")
    parser.add_argument("--parameters", type=int, default=134_515_008, help="SmolLM2-135M's")
    parser.add_argument("--report", type=int, default=53_806, help="a ten-thousandth of the model")
    parser.add_argument("--rounds", type=int, default=1000)
    said = parser.parse_args(arguments)
    if said.what == "run":
        run_all()
    elif said.what == "point":
        clients, cohort = said.point
        print(json.dumps(measure(clients, cohort, said.traced)))
    elif said.what == "table":
        print(table(json.loads(ROWS.read_text())))
    else:
        rows = json.loads(ROWS.read_text())
        print(plan(rows, said.parameters, said.report, said.rounds))


if __name__ == "__main__":
    main()
