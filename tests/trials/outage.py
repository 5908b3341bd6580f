"""Has the server of a real federation go away in the middle of runs, and says what came of it.

    python tests/trials/outage.py --seconds 180

For each kind of outage: a run of four rounds through a proxy on this machine's loopback, which goes
away after the first round. Prints what the nodes and `fullfed start` said, with seconds since the
outage began; at the end whether the log is that of the undisturbed run. Exits with 1 if one is not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from flower.proxy import OUTAGES
from flower.real import Federation, wait_until, write_ingredients, write_recipe
from fullfed.recipe_file import load_recipe
from fullfed.runs import run
from fullfed.runs.folder import RunFolder

ROUNDS = 4


class Timeline:
    """Prints new lines of several processes' outputs as they come."""

    def __init__(self, outputs: dict[str, Path]) -> None:
        self._outputs = outputs
        self._read = {name: path.stat().st_size for name, path in outputs.items()}
        self._began = time.monotonic()

    def show(self) -> None:
        for name, path in self._outputs.items():
            with path.open("rb") as file:
                file.seek(self._read[name])
                lines, newline, _ = file.read().rpartition(b"\n")
            self._read[name] += len(lines) + len(newline)
            for line in lines.decode(errors="replace").splitlines():
                print(f"{time.monotonic() - self._began:6.0f} s  {name:9} {line}", flush=True)


def trial(federation: Federation, recipe: Path, outage: str, seconds: float) -> bool:
    """Whether the run ends with the undisturbed log."""
    out = federation.folder / outage.replace(" ", "-")
    print(f"== {outage}, {seconds:.0f} s", flush=True)
    started = federation.start(recipe, out)
    wait_until(lambda: f"/{ROUNDS}" in started.said() or "error:" in started.said(), "a round")
    outputs = {name: node.output for name, node in federation.nodes.items()}
    timeline = Timeline(outputs | {"start": started.output})
    federation.proxy.begin(outage)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(1)
        timeline.show()
    federation.proxy.end()
    print(f"{seconds:6.0f} s  the server is back", flush=True)
    while len(RunFolder(out).metrics()) < ROUNDS and "error:" not in started.said():
        time.sleep(1)
        timeline.show()
    code = started.code()
    timeline.show()
    undisturbed = federation.folder / "undisturbed" / "updates.log"
    same = code == 0 and (out / "updates.log").read_bytes() == undisturbed.read_bytes()
    print(f"{outage}: {'the log is the undisturbed one' if same else 'FAILED'}", flush=True)
    return same


def main() -> int:
    """Carry the trials out; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=180.0, help="how long it is away")
    parser.add_argument("--outage", choices=OUTAGES, action="append", help="repeatable")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="outage-") as name:
        folder = Path(name)
        write_ingredients(folder)
        recipe = write_recipe(
            folder,
            model={"path": "builtin"},
            method={"name": "fedavg"},
            federation={"rounds": ROUNDS, "clients_per_round": 3},
            deployment={"deadline_seconds": given.seconds + 600},
        )
        run.start(load_recipe(recipe), folder / "undisturbed")
        federation = Federation(folder)
        try:
            outages = given.outage or OUTAGES
            results = [trial(federation, recipe, outage, given.seconds) for outage in outages]
        finally:
            federation.close()
    print(f"{sum(results)} of {len(results)} passed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
