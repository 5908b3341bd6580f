"""What a round costs: FedAvg, Ferret as published and Ferret with the sign basis, in one process.

    python benchmarks/overhead.py                                tiny shapes on a CPU: minutes
    python benchmarks/overhead.py --shapes llama-3b llama-7b     16-bit weights on a GPU
    python benchmarks/overhead.py --json > overhead.json
    python benchmarks/overhead.py --shapes smollm2 --optimizer adamw --precision bfloat16 \
        --clients 3 --steps 5 --length 192 --rounds 1 --threads 2

Random weights, random tokens, SGD unless --optimizer says another; all else is fullfed's own
methods, messages and rounds. One table a shape, laid out like tables 4 to 6 of the Ferret paper,
each cell the best of the rounds:

- local update, encoding: seconds of one client; they are visited one after another here and work
  side by side in a federation. Encoding turns the trained weights into a report: for Ferret it is
  the projection. The paper counts it with the local update.
- aggregation: aggregating all reports, and applying the update once, which everybody does at once.
- messages: encoding one report, decoding and checking all, and the update's way to a client. The
  paper counts none of this.
- total: the four together. "x FedAvg" divides it by FedAvg's; "x local" by FedAvg's local update
  alone, the least a round can cost.
- up, down: encoded bytes of one client's report; of its plan and the update.
- peak memory: on a GPU what torch had allocated at most; else the process's largest resident set.

No number is extrapolated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from fullfed.config import FederationTable, LocalTable, MemoryTable
from fullfed.data.tokens import TokenizedExample
from fullfed.engines.simulation import Simulation
from fullfed.federation.client import Worker
from fullfed.federation.messages import Plan, Report, Update, decode, encode
from fullfed.federation.replica import Replica
from fullfed.federation.server import run_round
from fullfed.methods import fedavg, fedcybgd, fedkseed, ferret
from fullfed.methods.codecs.dense import Dense
from fullfed.methods.codecs.topk import TopK
from fullfed.methods.composition import Composition
from fullfed.methods.setting import Setting
from fullfed.training.layers import layer_names
from fullfed.units import bytes_text
from machine import machine
from shapes import SHAPES, random_clients


def methods(setting: Setting, coordinates: int, device: str) -> dict[str, Composition]:
    """The rows of a table, FedAvg first. Numbers are sent in the width of the model's."""
    many = min(2**16, setting.elements)
    dense = Dense("bfloat16" if device == "cuda" else "float32")

    def sketched(k: int, **options: Any) -> Composition:
        chosen = {"server_step": 1.0} | options
        return ferret.build(setting, ferret.FerretOptions(coordinates=k, **chosen))

    upload = 4 * setting.elements // 100
    options = ferret.FerretOptions(upload=upload, server_step=1.0)
    hundredth, top = ferret.build(setting, options), replace(setting, codec=TopK(upload=upload))
    return {
        "FedAvg": fedavg.build(replace(setting, codec=dense), fedavg.FedAvgOptions()),
        "Ferret, normal basis, shared": sketched(coordinates, basis="normal", seeds="shared"),
        "Ferret, sign basis, shared": sketched(coordinates, seeds="shared"),
        "Ferret, sign basis": sketched(coordinates),
        "Ferret, sign basis, auto step": sketched(coordinates, server_step="auto"),
        f"Ferret, sign basis, K = {many:,}": sketched(many),
        "Ferret, a hundredth of the bytes": hundredth,
        "Top-k, a hundredth of the bytes": fedavg.build(top, fedavg.FedAvgOptions()),
        "FedKSeed": fedkseed.build(setting, fedkseed.FedKSeedOptions()),
        "FedCyBGD, one block": fedcybgd.build(
            replace(setting, codec=Dense("bfloat16", error_feedback=True)),
            fedcybgd.FedCyBGDOptions(order="rotating", clients_per_block=setting.cohort_size),
        ),
    }


class Timed:
    """A method that keeps the seconds of its merges; all else is the method's."""

    def __init__(self, method: Composition) -> None:
        self._method = method
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def aggregate(
        self, plans: Sequence[Plan], reports: Iterable[Report], last: Update | None
    ) -> Update:
        waited = 0.0

        def arriving() -> Iterator[Report]:
            nonlocal waited
            remaining, asked = iter(reports), now()
            while (report := next(remaining, None)) is not None:
                waited += now() - asked
                yield report
                asked = now()
            waited += now() - asked

        began = now()
        update = self._method.aggregate(plans, arriving(), last)
        self.seconds += now() - began - waited
        return update


def now() -> float:
    """Seconds, with everything a GPU was given to do done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def one_round(
    method: Composition, model: PreTrainedModel, data: Sequence[list[TokenizedExample]]
) -> dict[str, float]:
    """The figures of a federation's first round. It leaves nothing but other weights behind."""
    timed = Timed(method)
    worker = Worker(Replica(model, timed), timed, dict(enumerate(data)))
    watch_memory()
    began = now()
    result = run_round(timed, Simulation(worker), 0, None, model)
    clients, arrived = len(result.aggregated), now()
    payload = encode(result.update)
    update = decode(payload, Update)
    received = now()
    worker.replica.apply(update)
    aggregation = timed.seconds + now() - received
    visits = arrived - began - result.aggregate_seconds
    local, encoding = result.train_seconds / clients, result.encode_seconds / clients
    carrying = visits / clients - local - encoding + received - arrived
    return {
        "local": local,
        "encoding": encoding,
        "aggregation": aggregation,
        "messages": carrying + result.aggregate_seconds - timed.seconds,
        "memory": peak_memory(),
        "up": max(result.up.values()),
        "down": len(payload) + max(result.down.values()),
    }


def watch_memory() -> None:
    """From here on the peak counts."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM


def peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a method: the least of each figure over the rounds, the most of memory."""
    shape, device = SHAPES[name], options.device
    model = shape.model(device)
    data = random_clients(options.clients, 4 * options.steps, options.length, shape.vocabulary)

    def built(clients: int, steps: int) -> dict[str, Composition]:
        setting = Setting(
            federation=FederationTable(rounds=1, clients_per_round=clients),
            local=LocalTable(
                optimizer=options.optimizer,
                learning_rate=1e-4,
                clip=None,
                batch_size=4,
                steps=steps,
                precision=options.precision,
            ),
            memory=MemoryTable(),
            clients=clients,
            shapes={key: p.shape for key, p in model.named_parameters()},
            layers=layer_names(model),
        )
        return methods(setting, shape.coordinates, device)

    for method in built(clients=1, steps=1).values():
        one_round(method, model, data)  # compiles, and fills caches
    seen: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for label, method in built(options.clients, options.steps).items():
            # In turn: noise disturbs all alike.
            seen.setdefault(label, []).append(one_round(method, model, data))
    rows: list[dict[str, Any]] = []
    for label, rounds in seen.items():
        best = {key: min(figures[key] for figures in rounds) for key in rounds[0]}
        best["memory"] = max(figures["memory"] for figures in rounds)
        best["total"] = sum(best[key] for key in ("local", "encoding", "aggregation", "messages"))
        base = rows[0] if rows else best
        ratios = {
            "x FedAvg": best["total"] / base["total"],
            "x local": best["total"] / base["local"],
        }
        d = sum(p.numel() for p in model.parameters())
        rows.append({"shape": name, "d": d, "method": label, **best, **ratios})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row a method."""
    parts = ("local", "encoding", "aggregation", "messages", "total")
    lines = [
        f"{rows[0]['shape']}, d = {rows[0]['d']:,}",
        "",
        "| seconds | local update | encoding | aggregation | messages | total | x FedAvg | x local "
        "| peak memory | up | down |",
        "|" + "---|" * 11,
    ]
    for row in rows:
        seconds = " | ".join(f"{row[part]:.4f}" for part in parts)
        sizes = " | ".join(bytes_text(row[size]) for size in ("memory", "up", "down"))
        lines.append(
            f"| {row['method']} | {seconds} | {row['x FedAvg']:.2f} | {row['x local']:.2f} "
            f"| {sizes} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--length", type=int, help="tokens a sample; 256 on a GPU, else 32")
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--precision", default="float32", choices=["float32", "tf32", "bfloat16"])
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="rows and machine, instead of tables")
    options = parser.parse_args(arguments)
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = options.device == "cuda"
    options.length = options.length or (256 if on_gpu else 32)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for name in options.shapes or (["llama-1b", "llama-3b"] if on_gpu else ["tiny", "4m"]):
        found = measure(name, options)
        print(table(found), file=sys.stderr if options.json else sys.stdout, flush=True)
        rows += found
    if options.json:
        asked = {
            key: getattr(options, key)
            for key in ("clients", "steps", "rounds", "length", "optimizer", "precision")
        }
        print(json.dumps({"machine": machine(options.device) | asked, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
