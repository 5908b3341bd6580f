"""The papers' comparison on a real language model: SmolLM2-135M-Instruct on four data sets.

    python scripts/fetch_smollm2.py
    FULLFED_SHARED=... python benchmarks/smollm2.py run
    python benchmarks/smollm2.py table

``run`` carries out what is missing of the plan below, the most telling runs first, each in a
process and on a core of its own, by the labels of recipes/smollm2-*.toml. What a run came to is
written at once to docs/results/smollm2/rows.json, so that another day (or machine) goes on; a run
that was interrupted is resumed from its folder. Folders of finished runs are deleted, because
FedAvg's logs are of gigabytes. ``table`` prints the tables of docs/results/smollm2.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import tomli_w

from fullfed.comparisons.plan import contestants
from fullfed.files import write_json
from fullfed.recipe_file import load_tables
from fullfed.runs.binding import tables_of
from machine import machine

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "docs/results/smollm2/rows.json"
SETS = ("gsm8k", "natural-instructions", "dolly", "code-alpaca")
MAIN = ("fedavg", "ferret-1e5", "ferret-1e6")
OTHERS = (
    *("ferret-1e3", "ferret-1e4", "ferret-1e2", "ferret-published"),
    *("fedkseed", "fedit", "fedcybgd", "topk"),
)
# Of a label with another precision, 16-bit weights, or noise that is alike everywhere.
VARIANTS: Mapping[str, Sequence[str]] = {
    "": (),
    "float32": ("local.precision=float32",),
    "bfloat16 weights": ("local.precision=float32", "model.dtype=bfloat16"),
    "without scales": ("method.scales=none",),
}
Run = tuple[str, str, int, str]  # data set, label, seed, variant


def plan() -> Iterator[Run]:
    """All runs, in the order of their weight."""
    for seed in (0, 1, 2):
        for data in ("gsm8k", "dolly"):
            for label in MAIN:
                yield data, label, seed, ""
    for data in ("natural-instructions", "code-alpaca"):
        for label in MAIN:
            yield data, label, 0, ""
    for label in OTHERS:
        yield "gsm8k", label, 0, ""
    for data in SETS:
        for label in MAIN[1:]:
            yield data, label, 0, "without scales"
    for variant in ("float32", "bfloat16 weights"):
        for label in ("fedavg", "ferret-1e3"):
            yield "gsm8k", label, 0, variant
    for seed in (1, 2):
        for data in ("natural-instructions", "code-alpaca"):
            for label in MAIN:
                yield data, label, seed, ""
    for data in SETS[1:]:
        for label in OTHERS:
            yield data, label, 0, ""
    for seed in (1, 2):
        for label in ("fedavg", "ferret-1e3"):
            yield "gsm8k", label, seed, "float32"


def name(run: Run) -> str:
    data, label, seed, variant = run
    return f"{data} {label} {seed} {variant}".strip()


def carry_out(run: Run, folder: Path) -> dict[str, Any]:
    """One row of rows.json."""
    data, label, seed, variant = run
    source = ROOT / f"recipes/smollm2-{data}.toml"
    overrides = [f"federation.seed={seed}", *VARIANTS[variant]]
    (contestant,) = contestants(load_tables(source, overrides), [label], str(source))
    home = home_of(run, folder)
    if (home / "summary.json").exists():
        return row_of(run, home, contestant.recipe.evaluation.metrics)
    if (home / "base.json").exists():
        command = ["resume", str(home)]
    else:
        shutil.rmtree(home, ignore_errors=True)
        recipe = folder / f"{home.name}.toml"
        recipe.write_text(tomli_w.dumps(tables_of(contestant.recipe)))
        command = ["run", str(recipe), "--out", str(home)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / f"{home.name}.txt").open("a") as said:
        subprocess.run(
            [sys.executable, "-m", "fullfed", *command],
            check=True,
            cwd=ROOT,
            env=environment,
            stdout=said,
            stderr=said,
        )
    return row_of(run, home, contestant.recipe.evaluation.metrics)


def home_of(run: Run, folder: Path) -> Path:
    return folder / name(run).replace(" ", "-")


def row_of(run: Run, home: Path, metrics: Sequence[str]) -> dict[str, Any]:
    """What a finished run came to."""
    data, label, seed, variant = run
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((home / "summary.json").read_text())
    base = json.loads((home / "base.json").read_text())
    clients = [count for line in lines for count in line["bytes"]["up_by_client"].values()]
    return {
        "data": data,
        "label": label,
        "seed": seed,
        "variant": variant,
        "up": max(clients),
        "down": summary["bytes"]["down"],
        "before": {metric: base[metric] for metric in metrics},
        "after": {metric: lines[-1][metric] for metric in metrics},
        "losses": [line["loss"] for line in lines],
        "steps": [line["step"].get("server_step") for line in lines],
        "ranks": [line["step"].get("rank") for line in lines],
        "seconds": summary["seconds"],
        "peak_memory_bytes": summary["peak_memory_bytes"],
        "commit": subprocess.check_output(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True
        ).strip(),
        "machine": machine("cpu"),
    }


def run_all(folder: Path, only: Sequence[str], jobs: int, minutes: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ROWS.parent.mkdir(exist_ok=True)
    started, writing = time.monotonic(), Lock()
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    due = [run for run in plan() if name(run) not in rows and all(o in name(run) for o in only)]

    def one(run: Run) -> None:
        if time.monotonic() - started > 60 * minutes:
            return
        print(f"{name(run)}: begun", flush=True)
        row = carry_out(run, folder)
        with writing:
            rows[name(run)] = row
            write_json(ROWS, rows)
        shutil.rmtree(home_of(run, folder))
        seconds = row["seconds"]["total"]
        print(f"{name(run)}: loss {row['after']['loss']:.4f} after {seconds:.0f} s", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in [pool.submit(one, run) for run in due]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def drop(row: Mapping[str, Any]) -> float:
    return float(row["before"]["loss"]) - float(row["after"]["loss"])


def spread(numbers: Sequence[float], digits: int) -> str:
    """The mean, and the deviation where there are several."""
    mean = sum(numbers) / len(numbers)
    if len(numbers) == 1:
        return f"{mean:.{digits}f}"
    deviation = (sum((n - mean) ** 2 for n in numbers) / (len(numbers) - 1)) ** 0.5
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def table(rows: Mapping[str, Mapping[str, Any]], data: str, variant: str = "") -> str:
    """Markdown: a row for each label of a data set, and beside it those without scales."""
    beside = ["without scales"] if variant == "" else []
    own = [row for row in rows.values() if row["data"] == data and row["variant"] == variant]
    if not own:
        return ""
    own += [row for row in rows.values() if row["data"] == data and row["variant"] in beside]
    scores = [metric for metric in own[0]["before"] if metric != "loss"]
    whole = {row["seed"]: drop(row) for row in own if row["label"] == "fedavg"}
    heads = ["", "seeds", "bytes up, a client a round", "loss", "share of FedAvg's drop", *scores]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    first = own[0]["before"]
    before = [f"{first['loss']:.3f}", "0", *(f"{first[score]:.3f}" for score in scores)]
    lines.append("| base model |  |  | " + " | ".join(before) + " |")
    ours = ("fedavg", *(f"ferret-1e{n}" for n in range(2, 7)))
    for label in (*ours, "ferret-published", "topk", "fedkseed", "fedit", "fedcybgd"):
        for kind in (variant, *beside):
            mine = [row for row in own if row["label"] == label and row["variant"] == kind]
            name = f"{label}, {kind}" if kind in beside else label
            lines += _line(name, mine, whole, scores)
    return "\n".join(lines)


def _line(
    name: str,
    mine: Sequence[Mapping[str, Any]],
    whole: Mapping[int, float],
    scores: Sequence[str],
) -> list[str]:
    if not mine:
        return []
    shares = [drop(row) / whole[row["seed"]] for row in mine if row["seed"] in whole]
    cells = [
        name,
        str(len(mine)),
        f"{max(row['up'] for row in mine):,}",
        spread([row["after"]["loss"] for row in mine], 3),
        spread(shares, 3) if shares else "",
        *(spread([row["after"][score] for row in mine], 3) for score in scores),
    ]
    return ["| " + " | ".join(cells) + " |"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--out", type=Path, default=ROOT / "runs/smollm2")
    runs.add_argument("--only", nargs="*", default=[], help="parts of the names of runs to do")
    runs.add_argument("--jobs", type=int, default=2, help="runs at once, each on one core")
    runs.add_argument("--minutes", type=float, default=1e9, help="no run is begun after these")
    commands.add_parser("table")
    commands.add_parser("plan")
    options = parser.parse_args()
    if options.command == "run":
        run_all(options.out, options.only, options.jobs, options.minutes)
    elif options.command == "plan":
        print("\n".join(name(run) for run in plan()))
    else:
        rows = json.loads(ROWS.read_text())
        for variant in ("", "float32", "bfloat16 weights"):
            for data in SETS:
                if text := table(rows, data, variant):
                    print(f"\n{data} {variant}\n\n{text}")


if __name__ == "__main__":
    main()
