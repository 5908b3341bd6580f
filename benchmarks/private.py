"""What sums that show no one's numbers cost, and noise: the tables of docs/results/privacy.md.

    FULLFED_SHARED=... python benchmarks/private.py bits
    FULLFED_SHARED=... python benchmarks/private.py noise
    python benchmarks/private.py cost
    python benchmarks/private.py table

``bits``: the share of FedAvg's drop in loss that secure sums of sketches keep, by the bits of a
coordinate, at the same bytes of numbers a report. ``noise``: loss after client-level differential
privacy, by epsilon and clients, of a sketch and of dense changes. Both on stories260k and
natural-instructions. ``cost``: bytes and seconds of one secure sum by itself, of 4 to 100 clients
in one process. Rows go to docs/results/privacy.json as they come; a command that is repeated does
what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fullfed.config import parse_recipe
from fullfed.federation.messages import Plan, Report, decode, encode
from fullfed.files import write_json
from fullfed.methods.codecs.sketch import SUM_HEADER
from fullfed.methods.codecs.sketch_options import REPORT_HEADER
from fullfed.privacy.coordinator import Coordinator
from fullfed.privacy.identities import new_identity
from fullfed.privacy.integers import modular, pack_scalars
from fullfed.privacy.masks import Summand
from fullfed.privacy.participant import Participant
from fullfed.privacy.phases import reply
from fullfed.runs.folder import RunFolder
from fullfed.runs.run import start
from machine import machine

ROWS = Path(__file__).resolve().parents[1] / "docs/results/privacy.json"
MODEL_BYTES = 4 * 263_000  # of stories260k, in float32
UPLOADS = {"1,000x": MODEL_BYTES // 1000, "100x": MODEL_BYTES // 100}
BITS = (None, 8, 12, 16)
DELTA = 1e-4
EPSILONS = (8.0, 2.0, 32.0)
ROUNDS = 6
CLIENTS = (10, 100, 1000)
COHORT, NOISY_ROUNDS, NOISY_STEPS = 25, 6, 4
SHARES = {"sketch": "ferret", "dense": "fedavg"}
COORDINATES = 44_288  # of a report, where one sum is measured by itself


def tables(rounds: int, cohort: int, steps: int, **data: Any) -> dict[str, Any]:
    """natural-instructions as recipes/natural-instructions.toml has it, on stories260k."""
    shared = os.environ["FULLFED_SHARED"]
    return {
        "model": {"path": f"{shared}/models/stories260k"},
        "data": {
            "train": f"{shared}/data/natural-instructions-train.jsonl.gz",
            "test": f"{shared}/data/natural-instructions-test.jsonl.gz",
            "template": "alpaca",
            "max_length": 256,
            **(data or {"partition": "task"}),
        },
        "federation": {"rounds": rounds, "clients_per_round": cohort},
        "aggregation": {"name": "mean", "weights": "equal"},
        "local": {"optimizer": "sgd", "learning_rate": 0.5, "steps": steps, "batch_size": 4},
        "evaluation": {"every": rounds},
    }


def carry_out(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a run came to."""
    with TemporaryDirectory() as folder:
        home = Path(folder) / "run"
        summary = start(parse_recipe(dict(recipe), "the benchmark"), home)
        lines = RunFolder(home).metrics()
    return {
        "loss": summary["loss"],
        "up": lines[-1]["bytes"]["up"] / max(len(lines[-1]["aggregated"]), 1),
        "epsilon": lines[-1].get("epsilon"),
        "steps": [line["step"].get("server_step") for line in lines],
        "seconds": summary["seconds"]["total"],
        "machine": machine("cpu"),
    }


def bits_plan() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and tables of each run of ``bits``."""
    yield "fedavg", {"method": {"name": "fedavg"}}
    for name, upload in UPLOADS.items():
        method = {"name": "ferret", "upload": upload + REPORT_HEADER, "seeds": "shared"}
        yield f"{name} plain", {"method": method}
        method = {**method, "upload": upload + SUM_HEADER}
        for bits in BITS:
            privacy = {"secure_sum": True, **({} if bits is None else {"bits": bits})}
            yield f"{name} {bits or 'the default'} bits", {"method": method, "privacy": privacy}
    yield "fedavg, secure", {"method": {"name": "fedavg"}, "privacy": {"secure_sum": True}}


def noise_plan() -> Iterator[tuple[str, dict[str, Any]]]:
    """The same of ``noise``."""
    for epsilon in EPSILONS:
        for clients in CLIENTS:
            for kind, method in SHARES.items():
                options: dict[str, Any] = {"name": method}
                if method == "ferret":
                    options |= {"coordinates": 2600, "seeds": "shared"}
                privacy: dict[str, Any] = {
                    "protects": "client",
                    "epsilon": epsilon,
                    "delta": DELTA,
                    "clip": 1.0,
                    "clip_quantile": 0.5,
                    "secure_sum": True,
                }
                if clients > COHORT:
                    privacy["sampling"] = "poisson"
                yield (
                    f"{kind}, {clients} clients, epsilon {epsilon:g}",
                    {"method": options, "privacy": privacy, "clients": clients},
                )
    for kind, method in SHARES.items():
        options = {"name": method}
        if method == "ferret":
            options |= {"coordinates": 2600, "seeds": "shared"}
        yield f"{kind}, 1000 clients, no noise", {"method": options, "clients": 1000}


def run_all(part: str, plan: Iterator[tuple[str, dict[str, Any]]], seed: int) -> None:
    for name, own in plan:
        key = f"{name}, seed {seed}"
        rows = read_rows()
        if key in rows.setdefault(part, {}):
            continue
        print(f"{part}: {key}", flush=True)
        if part == "bits":
            recipe = tables(ROUNDS, 10, 10)
        else:
            clients = own.pop("clients")
            cohort = min(COHORT, clients)
            data = {"partition": "iid", "clients": clients}
            recipe = tables(NOISY_ROUNDS, cohort, NOISY_STEPS, **data)
        recipe |= own
        recipe["federation"]["seed"] = seed
        row = carry_out(recipe)
        rows = read_rows()
        rows.setdefault(part, {})[key] = row
        write_json(ROWS, rows)
        print(f"  loss {row['loss']['final']:.3f} after {row['seconds']:.0f} s", flush=True)


def read_rows() -> dict[str, Any]:
    return dict(json.loads(ROWS.read_text())) if ROWS.exists() else {}


def sum_cost(clients: int) -> dict[str, float]:
    """One secure sum without anybody lost: seconds of each side, bytes of a client."""
    bits, rng = 12, np.random.default_rng(0)
    about, spent, up, down = "round 0 of run cost", {"client": 0.0, "server": 0.0}, 0, 0
    numbers = [modular(rng.integers(-8, 9, COORDINATES), bits) for _ in range(clients)]
    identities = [new_identity() for _ in range(clients)]
    coordinator = Coordinator(about, 0, COORDINATES, bits, scalars=96)

    def timed(side: str, work: Any, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = work(*arguments)
        spent[side] += time.perf_counter() - began
        return result

    participants = {
        n: timed(
            "client",
            Participant,
            about,
            n,
            identities[n],
            Summand(numbers[n], bits, pack_scalars([0.0] * 6)),
        )
        for n in range(clients)
    }
    for n, one in participants.items():
        payload = encode(reply(Plan(0, n), **one.keys.tensors()))
        up += len(payload)
        timed("server", coordinator.take_keys, decode(payload, Report))
    for requests, take in (
        (coordinator.share_requests, coordinator.take_shares),
        (coordinator.mask_requests, coordinator.take_masked),
        (coordinator.confirm_requests, coordinator.take_confirmation),
        (coordinator.unmask_requests, coordinator.take_seeds),
    ):
        for plan in timed("server", requests):
            asked = encode(plan)
            answer = timed("client", participants[plan.client].answer, decode(asked, Plan))
            payload = encode(answer)
            up, down = up + len(payload), down + len(asked)
            timed("server", take, decode(payload, Report))
    total = timed("server", coordinator.total)
    due = np.zeros(COORDINATES, dtype=np.int64)
    for one in numbers:
        due += one
    assert np.array_equal(total.integers, modular(due, bits))
    return {
        "clients": clients,
        "client_seconds": spent["client"] / clients,
        "server_seconds": spent["server"],
        "up": up / clients,
        "down": down / clients,
        "numbers": -(-COORDINATES * bits // 8),
    }


def cost() -> None:
    rows = read_rows()
    rows["cost"] = [sum_cost(clients) for clients in (4, 10, 30, 100)]
    write_json(ROWS, rows)
    for row in rows["cost"]:
        print(row, flush=True)


def table() -> None:
    rows = read_rows()
    bits, base = rows.get("bits", {}), rows.get("bits", {}).get("fedavg, seed 0")
    if base:
        whole = base["loss"]["initial"] - base["loss"]["final"]
        print("| run | bytes up, a client | loss | share of FedAvg's drop |\n|---|---:|---:|---:|")
        for name, row in bits.items():
            share = (row["loss"]["initial"] - row["loss"]["final"]) / whole
            print(f"| {name} | {row['up']:,.0f} | {row['loss']['final']:.3f} | {share:.3f} |")
    print("\n| clients | epsilon | sketch | dense |\n|---:|---:|---:|---:|")
    noise = rows.get("noise", {})
    for clients in CLIENTS:
        for epsilon in (*(f"epsilon {e:g}" for e in sorted(EPSILONS)), "no noise"):
            names = [f"{kind}, {clients} clients, {epsilon}, seed 0" for kind in SHARES]
            if all(name in noise for name in names):
                losses = " | ".join(f"{noise[name]['loss']['final']:.3f}" for name in names)
                print(f"| {clients:,} | {epsilon.removeprefix('epsilon ')} | {losses} |")
    print(
        "\n| clients | bytes up | bytes down | of them numbers | seconds, a client | "
        "seconds, the server |\n|---:|---:|---:|---:|---:|---:|"
    )
    for row in rows.get("cost", []):
        print(
            f"| {row['clients']} | {row['up']:,.0f} | {row['down']:,.0f} | {row['numbers']:,} | "
            f"{row['client_seconds']:.3f} | {row['server_seconds']:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["bits", "noise", "cost", "table"])
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.part == "bits":
        run_all("bits", bits_plan(), chosen.seed)
    elif chosen.part == "noise":
        run_all("noise", noise_plan(), chosen.seed)
    elif chosen.part == "cost":
        cost()
    else:
        table()


if __name__ == "__main__":
    main()
