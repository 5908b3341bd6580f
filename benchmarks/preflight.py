"""What `fullfed check` says of a recipe, beside what its run then needs.

    OMP_NUM_THREADS=1 python benchmarks/preflight.py recipes/dolly.toml --set federation.rounds=1

Check and run are a process each. Time is that of the processor, of all threads: with one thread
it is what a machine that does nothing else would take, whatever else this one does.

- memory: the largest resident set during visits; by formula, and measured in check's own visit.
- time: of all visits and evaluations, without loading, and without what the server computes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HEAD = (
    "| recipe | memory | by formula | in check's visit | time | told |\n|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    told = _in_own_process(check, arguments.recipe, arguments.overrides)
    needed = _in_own_process(run, arguments.recipe, arguments.overrides)
    print(HEAD)
    print(
        f"| {Path(arguments.recipe).stem} {' '.join(arguments.overrides)} | {_mib(needed['peak'])} "
        f"| {_mib(told['formula'])} ({told['formula'] / needed['peak']:.2f}) "
        f"| {_mib(told['peak'])} ({told['peak'] / needed['peak']:.2f}) "
        f"| {needed['seconds']:.1f} s | {told['seconds']:.1f} s "
        f"({told['seconds'] / needed['seconds']:.2f}) |"
    )


def check(recipe: str, overrides: list[str]) -> dict[str, Any]:
    import fullfed

    found = fullfed.check(recipe, overrides=overrides)
    assert found.timing is not None
    return {
        "formula": found.memory.peak,
        "peak": found.timing.peak_bytes,
        "seconds": found.timing.run_seconds,
    }


def run(recipe: str, overrides: list[str]) -> dict[str, Any]:
    import fullfed

    with tempfile.TemporaryDirectory() as folder:
        done = fullfed.run(recipe, Path(folder) / "run", overrides=overrides)
        seconds = done["seconds"]
        return {
            "peak": done["peak_memory_by_part"]["visit"],
            "seconds": seconds["train"] + seconds["encode"] + seconds["evaluate"],
        }


def _in_own_process(work: Any, *arguments: Any) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, arguments, theirs))
    process.start()
    theirs.close()
    found: dict[str, Any] = json.loads(ours.recv())
    process.join()
    return found


def _work(work: Any, arguments: tuple[Any, ...], answer: Connection) -> None:
    time.perf_counter = time.process_time  # before fullfed is imported
    answer.send(json.dumps(work(*arguments)))


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
