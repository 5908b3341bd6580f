"""Ferret beside its strongest rivals at equal bytes: the tables of docs/results/rivals.md.

    python benchmarks/rivals.py run      # FULLFED_SHARED: the folder with data/ and models/
    python benchmarks/rivals.py table

stories260k. Across devices: natural-instructions, 10 of 170 clients a round. Across silos: GSM8K,
each of 3 clients in every round. SGD and AdamW at the clients, twelve rounds of ten steps. Every
method has its defaults, or what its paper has; a ratio is of the bytes of FedAvg's report, header
and all. Then across silos with AdamW the same 300 steps of each client in 30, 10, 3 or 1 rounds.
Rows go to docs/results/rivals.json as they come; ``run`` goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import fullfed
from fullfed.files import write_json
from machine import machine

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "docs/results/rivals.json"
BYTES = 4 * 260_032
MODEL = "$FULLFED_SHARED/models/stories260k"
RATIOS = (100, 1000, 10000)
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "devices": ("recipes/natural-instructions.toml", "federation.rounds=12"),
    "silos": ("recipes/gsm8k.toml", "federation.rounds=12", f"model.path={MODEL}"),
}
SERVER_RATES = {"diloco": (0.1, 0.3), "fedadam": (0.003, 0.01)}  # beside the default
STEPS = (10, 30, 100, 300)  # of a visit, with as many rounds as make 300
DIAL = ("fedavg", "diloco", "ferret 1000x", "ferret 10000x")
OPTIMIZERS: Mapping[str, tuple[str, ...]] = {
    "adamw": ('local.optimizer="adamw"', "local.learning_rate=0.003"),
    "sgd": ('local.optimizer="sgd"', "local.learning_rate=0.5"),
}
KEPT = "local.optimizer_state=kept"  # of AdamW; SGD without momentum has nothing to keep
TOPK = ("method.name=fedavg", "codec.name=topk")
FEEDBACK = ("codec.error_feedback=true", "codec.decay=0.95")


def methods() -> dict[str, tuple[str, ...]]:
    """What each row changes in the recipe."""
    rows: dict[str, tuple[str, ...]] = {
        "fedavg": ("method.name=fedavg",),
        "fedavg, moments kept": ("method.name=fedavg", KEPT),
        "fedavgm": ("method.name=fedavgm",),
        "fedadam": ("method.name=fedadam",),
        "fedyogi": ("method.name=fedyogi",),
        "diloco": ("method.name=diloco", KEPT),
        "diloco, moments anew": ("method.name=diloco",),
        "eden": ("method.name=eden",),
        "sparseloco": ("method.name=sparseloco", KEPT),
        "sparseloco, moments anew": ("method.name=sparseloco",),
    }
    for rate in SERVER_RATES["diloco"]:
        rows[f"diloco, {rate}"] = ("method.name=diloco", KEPT, f"method.learning_rate={rate}")
    for rate in SERVER_RATES["fedadam"]:
        rows[f"fedadam, {rate}"] = ("method.name=fedadam", f"method.learning_rate={rate}")
    for ratio in RATIOS:
        upload = BYTES // ratio
        rows |= {
            f"ferret {ratio}x": ("method={}", "method.name=ferret", f"method.upload={upload}B"),
            f"ferret {ratio}x, shared": (
                *("method={}", "method.name=ferret", f"method.upload={upload}B"),
                "method.seeds=shared",
            ),
            f"topk {ratio}x": (*TOPK, f"codec.upload={upload}B"),
            f"topk {ratio}x, error feedback": (*TOPK, f"codec.upload={upload}B", *FEEDBACK),
            f"topk {ratio}x, error feedback, 2 bits": (
                *(*TOPK, f"codec.upload={upload}B", *FEEDBACK),
                "codec.bits=2",
            ),
        }
    return rows


def dial_of(steps: int) -> str:
    """The setting's name."""
    return f"silos, {steps} steps a visit"


def settings() -> dict[str, tuple[str, ...]]:
    """A recipe and what is changed in it."""
    recipe, _, model = SETTINGS["silos"]
    dial = {
        dial_of(n): (recipe, f"federation.rounds={300 // n}", model, f"local.steps={n}")
        for n in STEPS
    }
    return {**SETTINGS, **dial}


def plan(seeds: Sequence[int]) -> Iterator[tuple[str, str, str, int]]:
    """(setting, optimizer, method, seed); what keeps moments of SGD is left out."""
    for seed in seeds:
        for setting, optimizer in product(SETTINGS, OPTIMIZERS):
            for method, overrides in methods().items():
                if optimizer == "adamw" or KEPT not in overrides:
                    yield setting, optimizer, method, seed
        yield from ((dial_of(n), "adamw", method, seed) for n, method in product(STEPS, DIAL))


def carry_out(setting: str, optimizer: str, method: str, seed: int) -> dict[str, Any]:
    recipe, *common = settings()[setting]
    overrides = [
        *common,
        *OPTIMIZERS[optimizer],
        "method={}",
        *methods()[method],
        f"federation.seed={seed}",
        'evaluation.metrics=["loss"]',
    ]
    with TemporaryDirectory() as folder:
        run = fullfed.run(str(ROOT / recipe), f"{folder}/run", overrides=overrides)
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
        visits = sum(len(json.loads(line)["aggregated"]) for line in lines)
        return {
            "visits": visits,
            "base": run["loss"]["initial"],
            "loss": run["loss"]["final"],
            "up": run["bytes"]["up"],
            "down": run["bytes"]["down"],
            "machine": machine("cpu"),
        }


def run_all(seeds: Sequence[int], only: Sequence[str]) -> None:
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for setting, optimizer, method, seed in plan(seeds):
        name = f"{setting} | {optimizer} | {method} | {seed}"
        if name in rows or not all(part in name for part in only):
            continue
        rows[name] = carry_out(setting, optimizer, method, seed)
        write_json(ROWS, rows)
        print(f"{name}: {rows[name]['loss']:.3f}", flush=True)


def table(rows: Mapping[str, Mapping[str, Any]], setting: str, optimizer: str) -> str:
    """Markdown: a line a method, over the seeds that FedAvg has been run with too."""
    lines = [
        f"| {setting}, {optimizer} | seeds | loss | share of FedAvg's drop | up: times fewer bytes "
        "| both ways |",
        "|---|---|---|---|---|---|",
    ]
    whole = {
        name.rsplit(" | ", 1)[1]: row
        for name, row in rows.items()
        if name.startswith(f"{setting} | {optimizer} | fedavg | ")
    }
    for method in methods():
        start = f"{setting} | {optimizer} | {method} | "
        own = {seed: rows[start + seed] for seed in whole if start + seed in rows}
        if not own:
            continue
        shares = [_drop(row) / _drop(whole[seed]) for seed, row in own.items()]
        up, both = (
            statistics.mean(_bytes(whole[s], ways) / _bytes(row, ways) for s, row in own.items())
            for ways in (("up",), ("up", "down"))
        )
        losses = _spread([row["loss"] for row in own.values()])
        lines.append(
            f"| {method} | {len(own)} | {losses} | {_spread(shares)} | {up:,.0f} | {both:,.1f} |"
        )
    return "\n".join(lines)


def dial(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: loss and bytes up for each step of a client, over the seeds that there are."""
    lines = [
        "| silos, adamw | " + " | ".join(f"{n} steps a visit" for n in STEPS) + " |",
        "|---" * (len(STEPS) + 1) + "|",
    ]
    for method in DIAL:
        cells = []
        for n in STEPS:
            start = f"{dial_of(n)} | adamw | {method} | "
            own = [row for name, row in rows.items() if name.startswith(start)]
            sent = [row["up"] / row["visits"] / n for row in own]
            losses = _spread([row["loss"] for row in own]) if own else ""
            cells.append(f"{losses}; {statistics.mean(sent):,.0f} B" if own else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _drop(row: Mapping[str, Any]) -> float:
    return float(row["base"] - row["loss"])


def _bytes(row: Mapping[str, Any], ways: Sequence[str]) -> int:
    return sum(row[way] for way in ways)


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of rows to do")
    options = parser.parse_args()
    if options.command == "run":
        run_all(options.seeds, options.only)
        return
    rows = json.loads(ROWS.read_text())
    for setting, optimizer in product(SETTINGS, OPTIMIZERS):
        if any(name.startswith(f"{setting} | {optimizer} | fedavg | ") for name in rows):
            print(f"\n{table(rows, setting, optimizer)}")
    print(f"\n{dial(rows)}")


if __name__ == "__main__":
    main()
