"""Whether Ferret's automatic step ever lets a run diverge: 60 rounds at every extreme.

    python benchmarks/stability.py --out runs/stability --jobs 2
    python benchmarks/stability.py recipes/natural-instructions.toml --out runs/stability --jobs 2

Coordinates from 16 to a tenth of the parameters, exact and in one bit, local SGD at the recipe's
rate and AdamW, clients alike (IID) and as unlike as can be (Dirichlet 0.05); 8 clients, 4 a
round, 5 steps each. Without a recipe, the embedded model on the quickstart's unknown tasks. Prints
each run's loss before, its highest and lowest on the way and its last. A run that is there already
is not repeated, one that was stopped is resumed.
"""

from __future__ import annotations

import argparse
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fullfed.recipe_file import load_recipe
from fullfed.runs.folder import RunFolder
from fullfed.runs.loading import load_model
from share_of_fedavg import Setup, carry_out

_EMBEDDED = """\
[model]
path = "builtin"
[data]
train = "builtin"
[federation]
rounds = 60
clients_per_round = 4
[local]
optimizer = "sgd"
learning_rate = 0.3
momentum = 0.9
batch_size = 4
[method]
name = "ferret"
"""
_SAME = (
    "method.name=ferret",
    "data.clients=8",
    "data.min_samples=4",
    "federation.clients_per_round=4",
    "federation.rounds=60",
    "local.steps=5",
    "evaluation.every=10",
    'evaluation.metrics=["loss"]',
)
_CLIENTS = {"iid": ("data.partition=iid",), "0.05": ("data.partition=dirichlet", "data.alpha=0.05")}
_OPTIMIZERS = {
    "sgd": (),
    "adamw": ("local.optimizer=adamw", "local.learning_rate=0.001", "local.momentum=0"),
}


def setups(parameters: int) -> list[Setup]:
    """Every combination of coordinates, bits, optimizer and clients."""
    counts = [16, 256, 4096, parameters // 10]
    return [
        Setup(
            f"{count}-{bits}bit-{optimizer}-{clients}",
            (
                *_SAME,
                *_OPTIMIZERS[optimizer],
                *_CLIENTS[clients],
                f"method.coordinates={count}",
                f"method.bits={bits}",
            ),
        )
        for count, bits, optimizer, clients in itertools.product(
            counts, (1, 32), _OPTIMIZERS, _CLIENTS
        )
    ]


def row(setup: Setup, folder: RunFolder) -> str:
    """One line of the table."""
    summary = folder.summary()
    losses = [float(r["loss"]) for r in folder.metrics() if r.get("loss") is not None]
    before, last = float(summary["loss"]["initial"]), float(summary["loss"]["final"])
    verdict = "" if math.isfinite(last) and max(losses) < before else "above the start"
    return (
        f"| {setup.label} | {before:.3f} | {max(losses):.3f} | {min(losses):.3f} | {last:.3f} "
        f"| {verdict} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", nargs="*", default=[], help="further overrides, for every run")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.recipe is None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        arguments.recipe = arguments.out / "recipe.toml"
        arguments.recipe.write_text(_EMBEDDED, encoding="utf-8")
    model, _ = load_model(load_recipe(arguments.recipe, arguments.set).model.path)
    rows = setups(sum(p.numel() for p in model.parameters()))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        folders = list(pool.map(lambda setup: carry_out(arguments, setup, 0), rows))
    print("| run | loss before | highest | lowest | last | |\n|---|---|---|---|---|---|")
    for setup, folder in zip(rows, folders, strict=True):
        print(row(setup, folder))


if __name__ == "__main__":
    main()
