"""FedCyBGD in every order beside FedAvg, centralised training and block coordinate descent.

    python benchmarks/cycles.py --out runs/cycles --jobs 2

Equal numbers of samples: 16 clients are visited three times each, however many at once, on
natural-instructions and Dolly, IID and Dirichlet 0.1. A cell of data and division is four
comparisons of recipes/fedcybgd.toml (one client a round, four, eight, and all data in one
client's hands), each with its own search for learning rates over a cycle; other forms of what is
sent on natural-instructions alone. Prints a table for each cell; what is there already is not
repeated, what was stopped is resumed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullfed.units import bytes_text, seconds_text
from share_of_fedavg import spread

RECIPE = Path(__file__).parent.parent / "recipes" / "fedcybgd.toml"
CLIENTS, CYCLES = 16, 3
DATA = {
    "natural-instructions": (),
    "dolly": (
        'data={train = "$FULLFED_SHARED/data/dolly-15k-short.jsonl.gz", template = "alpaca", '
        'hold_out = "summarization", test_samples = 300, max_length = 256, min_samples = 20}',
    ),
}
DIVISIONS = {
    "iid": ("data.partition=iid",),
    "dirichlet-0.1": ("data.partition=dirichlet", "data.alpha=0.1"),
}


@dataclass(frozen=True)
class Arrangement:
    """One comparison of a cell.

    Attributes:
        name: its folder's.
        at_once: clients in a round.
        labels: of the recipe.
        changes: what else differs.
    """

    name: str
    at_once: int
    labels: tuple[str, ...]
    changes: tuple[str, ...] = ()

    @property
    def cycle(self) -> int:
        """Rounds in which as many visits take place as there are clients."""
        return CLIENTS // self.at_once


_SENT = ("int8", "surrogate", "cyclic-ferret")  # other forms than changes in bfloat16
_ORDERS = ("fedcybgd", "descending", "rotating", "permutation")
ARRANGEMENTS = (
    Arrangement("one-by-one", 1, (*_ORDERS, "outer", *_SENT, "fedavg")),
    Arrangement("four-at-once", 4, ("permutation", "pairs")),
    Arrangement("averaged", 8, ("fedavg", "fedavg-sgd")),
    Arrangement("centralised", 1, ("fedavg", "rotating"), ("data.clients=1", "data.partition=iid")),
)


def compare(
    arrangement: Arrangement,
    labels: Sequence[str],
    folder: Path,
    changes: Sequence[str],
    jobs: int,
) -> None:
    """Carry out, or finish, one comparison."""
    cycle = arrangement.cycle
    overrides = [
        *changes,
        f"data.clients={CLIENTS}",
        *arrangement.changes,
        f"federation.clients_per_round={arrangement.at_once}",
        f"federation.rounds={CYCLES * cycle}",
        f"evaluation.every={cycle}",
    ]
    command = [sys.executable, "-m", "fullfed", "compare", str(RECIPE), "--out", str(folder)]
    command += ["--methods", ",".join(labels), "--seeds", "3", "--jobs", str(jobs)]
    command += ["--trials", "3", "--trial-rounds", str(cycle)]
    command += [part for override in overrides for part in ("--set", override)]
    print(f"{folder} ...", file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def rows(arrangement: Arrangement, folder: Path) -> Iterator[str]:
    """The table's lines for one comparison."""
    found = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    for method in found["methods"]:
        runs = [run for run in method["runs"] if not run["failed"]]
        if not runs:
            yield f"| {arrangement.name} | {method['label']} | failed |"
            continue
        evaluated = [[r for r in run["rounds"] if r["loss"] is not None] for run in runs]
        losses = [spread([run[cycle]["loss"] for run in evaluated]) for cycle in range(CYCLES)]
        cells = [arrangement.name, method["label"], f"{method['learning_rate']:.3g}", *losses]
        cells.append(spread([run[-1]["rouge_l"] for run in evaluated]))
        cells += [bytes_text(_total(runs, way)) for way in ("up", "down")]
        cells.append(seconds_text(statistics.mean(_seconds(run) for run in runs)))
        yield f"| {' | '.join(cells)} |"


def _total(runs: Sequence[Any], way: str) -> float:
    return float(statistics.mean(sum(r[way] for r in run["rounds"]) for run in runs))


def _seconds(run: Any) -> float:
    return float(sum(sum(r["seconds"].values()) for r in run["rounds"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--divisions", nargs="+", default=list(DIVISIONS), choices=list(DIVISIONS))
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    for data, division in itertools.product(arguments.data, arguments.divisions):
        print(f"\n{data}, {division}\n")
        print("| | label | rate | cycle 1 | 2 | 3 | ROUGE-L | up | down | training |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for arrangement in ARRANGEMENTS:
            # In one client's hands nothing is divided: one comparison for both divisions.
            together = arrangement.name == "centralised"
            folder = arguments.out / (data if together else f"{data}-{division}") / arrangement.name
            changes = DATA[data] if together else (*DATA[data], *DIVISIONS[division])
            left_out = () if data == "natural-instructions" else _SENT
            labels = [label for label in arrangement.labels if label not in left_out]
            compare(arrangement, labels, folder, changes, arguments.jobs)
            for line in rows(arrangement, folder):
                print(line, flush=True)


if __name__ == "__main__":
    main()
