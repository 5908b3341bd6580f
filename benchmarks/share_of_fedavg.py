"""How much of FedAvg's loss drop Ferret keeps, at how many times fewer bytes.

    python benchmarks/share_of_fedavg.py recipes/natural-instructions.toml --out runs/share \
        --ratios 10 100 1000 10000 --bits auto 32 --normal 1000 --topk 1000 --seeds 0 1 2

Runs FedAvg, Ferret with as many coordinates as are 1 / ratio of the model's 32 bits a parameter
(sign basis, each kind of seeds, each number of bits; with "auto" bits what ``upload`` makes of that
many bytes beside a report's header), the normal basis at the ratios given, and FedAvg with top-k
of as many bytes, without and with error feedback. Each starts from the same recipe with each seed.
Prints a table: final loss, share of FedAvg's drop from the base model (seed by seed, then mean and
standard deviation), bytes and seconds. A run that is there already is not repeated, one that was
stopped is resumed; --jobs runs several at once, with the cores divided among them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fullfed.methods.codecs import sketch_options, topk
from fullfed.recipe_file import load_recipe
from fullfed.reports.runs import can_plot, plot_runs
from fullfed.runs.folder import RunFolder
from fullfed.runs.loading import load_model
from fullfed.sketch import BITS
from fullfed.units import bytes_text, seconds_text


@dataclass(frozen=True)
class Setup:
    """One row of the table.

    Attributes:
        label: its name, and the prefix of its runs' folders.
        overrides: what it changes in the recipe.
    """

    label: str
    overrides: tuple[str, ...]


def setups(parameters: int, arguments: argparse.Namespace) -> list[Setup]:
    """FedAvg first, then Ferret."""
    rows = [Setup("fedavg", ("method.name=fedavg",))]
    for seeds in arguments.kinds:
        rows += [
            _ferret(parameters, ratio, "sign", seeds, bits)
            for ratio in arguments.ratios
            for bits in arguments.bits
        ]
        rows += [_ferret(parameters, ratio, "normal", seeds, "32") for ratio in arguments.normal]
    for ratio in arguments.topk:
        upload = f"codec.upload={4 * parameters // ratio + topk.REPORT_HEADER}B"
        chosen = (
            "method.name=fedavg",
            "codec.name=topk",
            upload,
            f"codec.bits={arguments.topk_bits}",
        )
        rows.append(Setup(f"topk-{ratio}x", chosen))
        if arguments.feedback:
            rows.append(Setup(f"topk-{ratio}x-ef", (*chosen, "codec.error_feedback=true")))
    return rows


def _ferret(parameters: int, ratio: int, basis: str, seeds: str, bits: str) -> Setup:
    amount = [f"method.upload={4 * parameters // ratio + sketch_options.REPORT_HEADER}B"]
    if bits != "auto":
        coordinates = min(parameters, 32 * parameters // (ratio * int(bits)))
        amount = [f"method.coordinates={coordinates}", f"method.bits={bits}"]
    kind = [f"method.basis={basis}", f"method.seeds={seeds}"]
    return Setup(
        f"ferret-{ratio}x-{basis}-{seeds}" + (f"-{bits}" if bits != "32" else ""),
        ("method={}", "method.name=ferret", *kind, *amount),
    )


def carry_out(arguments: argparse.Namespace, setup: Setup, seed: int) -> RunFolder:
    """Start, resume or find the run of one row and seed."""
    folder = RunFolder(arguments.out / f"{setup.label}-seed{seed}")
    if folder.summary_file.exists():
        return folder
    if folder.recipe_file.exists():
        command = ["resume", str(folder.path)]
    else:
        overrides = [*arguments.set, *setup.overrides, f"federation.seed={seed}"]
        options = [part for override in overrides for part in ("--set", override)]
        command = ["run", str(arguments.recipe), *options, "--out", str(folder.path)]
    threads = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
    print(f"{folder.path.name} ...", file=sys.stderr, flush=True)
    subprocess.run(
        [sys.executable, "-m", "fullfed", *command],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": threads},
    )
    return folder


def table(rows: Sequence[Setup], summaries: dict[tuple[str, int], Any], seeds: list[int]) -> str:
    """The Markdown table."""
    lines = [
        "| setup | loss before | loss after | share of FedAvg's drop | up | down | train | encode "
        "| aggregate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own = [summaries[row.label, seed] for seed in seeds]
        shares = [
            _drop(s) / _drop(summaries["fedavg", seed]) for s, seed in zip(own, seeds, strict=True)
        ]
        finals = [s["loss"]["final"] for s in own]
        seconds = {
            part: statistics.mean(s["seconds"][part] for s in own)
            for part in ("train", "encode", "aggregate")
        }
        traffic = {way: statistics.mean(s["bytes"][way] for s in own) for way in ("up", "down")}
        lines.append(
            f"| {row.label} | {own[0]['loss']['initial']:.3f} | {spread(finals)} "
            f"| {spread(shares)} | {bytes_text(traffic['up'])} | {bytes_text(traffic['down'])} "
            f"| {seconds_text(seconds['train'])} | {seconds_text(seconds['encode'])} "
            f"| {seconds_text(seconds['aggregate'])} |"
        )
    return "\n".join(lines)


def _drop(summary: dict[str, Any]) -> float:
    return float(summary["loss"]["initial"] - summary["loss"]["final"])


def spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ratios", type=int, nargs="*", default=[10, 100, 1000, 10000])
    choices = ["auto", *map(str, BITS), "32"]
    parser.add_argument("--bits", nargs="+", default=["32"], choices=choices)
    parser.add_argument("--normal", type=int, nargs="*", default=[1000])
    parser.add_argument("--topk", type=int, nargs="*", default=[], help="ratios of top-k's rows")
    parser.add_argument("--topk-bits", type=int, default=1, help="of a value")
    parser.add_argument("--feedback", action="store_true", help="top-k with error feedback too")
    parser.add_argument("--kinds", nargs="+", default=["client", "shared"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="further overrides, for every run")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    model, _ = load_model(load_recipe(arguments.recipe, arguments.set).model.path)
    rows = setups(sum(p.numel() for p in model.parameters()), arguments)
    work = [(row, seed) for seed in arguments.seeds for row in rows]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        folders = list(pool.map(partial(carry_out, arguments), *zip(*work, strict=True)))
    runs = {(row.label, seed): f for (row, seed), f in zip(work, folders, strict=True)}
    summaries = {key: folder.summary() for key, folder in runs.items()}
    text = table(rows, summaries, arguments.seeds)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n", encoding="utf-8")
    if can_plot():
        first = arguments.seeds[0]
        plot_runs({row.label: runs[row.label, first] for row in rows}, arguments.out)


if __name__ == "__main__":
    main()
