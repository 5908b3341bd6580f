"""Ends runs at any moment, resumes them, and compares them with runs that were never disturbed.

    PYTHONPATH=tests python -m trials.kills --crashes 300 --kills 40

A *crash* is simulated in this process, exactly: at an fsync, a replacement or a deletion of a file,
what was written since the last fsync is cut anywhere or in part zero, or a new name is lost, and an
exception that nothing catches ends the run. A *kill* is SIGKILL at a random moment to a process of
its own.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer

from fullfed.federation.log import MAGIC, count_records, read_log
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import verify
from runs.small import ROUNDS, write_ingredients
from trials.subjects import METHODS, carry_out, go, models_in_memory

STATEFUL = ("sketch", "residuals", "moments", "seeds")

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


class Crash(BaseException):
    """The machine stops here: no error, and nothing may catch it."""


class FaultyDisk:
    """Counts durable operations, and crashes at one of them.

    Args:
        folder: of the run; what is in it already is durable.
        crash_at: which, from 0; None for never.
        chance: decides how much of what was not durable survives.

    Attributes:
        operations: how many there have been.
    """

    def __init__(self, folder: Path, crash_at: int | None, chance: random.Random) -> None:
        self._crash_at, self._chance = crash_at, chance
        self.operations = 0
        files = (path for path in folder.rglob("*") if path.is_file())
        self._durable = {path: path.stat().st_size for path in files}
        self._renamed: tuple[Path, bytes | None] | None = None  # a name that is not durable yet

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, files are written through this disk."""
        real_fsync, real_replace, real_unlink = os.fsync, Path.replace, Path.unlink

        def fsync(descriptor: int) -> None:
            size = os.fstat(descriptor).st_size
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if self._due():
                if path.is_dir():
                    self._lose_the_name()
                else:
                    self._tear(path, self._durable.get(path, 0), size)
                raise Crash
            real_fsync(descriptor)
            self._durable[path] = size
            self._renamed = None

        def replace(path: Path, target: Path) -> Path:
            if self._due():
                raise Crash
            self._renamed = (target, target.read_bytes() if target.exists() else None)
            self._durable[target] = self._durable.pop(path)
            return real_replace(path, target)

        def unlink(path: Path, missing_ok: bool = False) -> None:
            if path.exists() and self._due():
                raise Crash
            real_unlink(path, missing_ok)
            self._durable.pop(path, None)

        with (
            mock.patch.object(os, "fsync", fsync),
            mock.patch.object(Path, "replace", replace),
            mock.patch.object(Path, "unlink", unlink),
        ):
            yield

    def _due(self) -> bool:
        self.operations += 1
        return self.operations - 1 == self._crash_at

    def _tear(self, path: Path, durable: int, size: int) -> None:
        """Leave any part of what was written since the last fsync; perhaps zeros after it."""
        os.truncate(path, self._chance.randint(min(durable, size), size))
        if self._chance.random() < 0.3:
            os.truncate(path, size)

    def _lose_the_name(self) -> None:
        if self._renamed is None or self._chance.random() < 0.5:
            return
        target, content = self._renamed
        if content is None:
            os.remove(target)  # noqa: PTH107 (Path's is this disk's)
        else:
            target.write_bytes(content)


@dataclass
class Seen:
    """What crashes left, and what is wrong with what came of it.

    Attributes:
        counts: crashes and kills, and of them those that left what the key says.
        faults: each in a line.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def look(self, out: Path) -> None:
        """Count what a crash left in a run's folder."""
        log, lines = out / "updates.log", out / "metrics.jsonl"
        written = lines.read_bytes() if lines.exists() else b""
        whole = len(written.split(b"\n")) - 1
        if log.exists() and _torn(log):
            self.counts["torn tail of the log"] += 1
        if written and not written.endswith(b"\n"):
            self.counts["torn line of metrics.jsonl"] += 1
        elif log.exists() and count_records(log) > whole and not _torn(log):
            self.counts["record without its line"] += 1
        if any(out.rglob("*.partial")):
            self.counts["half-written file"] += 1

    def compare(self, out: Path, whole: Path, title: str) -> None:
        """Note where a run is not the one that was never disturbed."""
        try:
            verify(RunFolder(out))
            for what, found in content(out).items():
                if found != content(whole)[what]:
                    self.faults.append(f"{title}: {what} differs")
        except Exception as error:
            self.faults.append(f"{title}: {error!r}")

    def show(self) -> None:
        for what, count in self.counts.items():
            print(f"{count:6} {what}")
        print(f"{len(self.faults):6} runs that are not as they should be")
        for fault in self.faults:
            print(fault)


def _torn(log: Path) -> bool:
    records = list(read_log(log)) if log.read_bytes().startswith(MAGIC) else []
    return log.stat().st_size != len(MAGIC) + sum(48 + len(record) for record in records)


def content(out: Path) -> dict[str, Any]:
    """What two runs of one recipe have in common: all but times and checksums of times."""
    timed = ("seconds", "peak_memory_bytes", "peak_memory_by_part", "checksum")
    folder = RunFolder(out)
    states = sorted(path for path in out.glob("states/*/*.safetensors"))
    return {
        "updates.log": (out / "updates.log").read_bytes(),
        "metrics.jsonl": [
            {k: v for k, v in line.items() if k not in timed} for line in folder.metrics()
        ],
        "the model": folder.summary()["model_hash"],
        "states/": {str(path.relative_to(out)): path.read_bytes() for path in states},
    }


def crash(name: str, ingredients: Path, home: Path, number: int, seen: Seen) -> None:
    """One run with up to three crashes, the first at the operation of this number."""
    if not (home / f"{name}-whole").exists():
        carry_out(name, ingredients, home / f"{name}-whole", None)
    chance = random.Random(f"{name} {number}")
    out, whole = home / f"{name}-{number}", home / f"{name}-whole"
    crash_at: int | None = number
    try:
        for _ in range(3):
            disk = FaultyDisk(out, crash_at, chance)
            with suppress(Crash), disk.installed():
                go(name, ingredients, out)
            if disk.operations <= (crash_at or 0):
                break
            seen.counts["crashes"] += 1
            seen.look(out)
            crash_at = chance.randrange(30)
        go(name, ingredients, out)
    except Exception as error:
        seen.faults.append(f"{name}, crash {number}: {error!r}")
        return
    seen.compare(out, whole, f"{name}, crash {number}")


def crashes(names: list[str], ingredients: Path, home: Path, most: int, seen: Seen) -> None:
    """Crash at each durable operation of each method's run, again and again, ``most`` times."""
    operations = {}
    for name in names:
        out = home / f"{name}-whole"
        disk = FaultyDisk(out, None, random.Random(0))
        with disk.installed():
            carry_out(name, ingredients, out, None)
        operations[name] = disk.operations
    number = 0
    while seen.counts["crashes"] < most:
        for name in names:
            if seen.counts["crashes"] < most:
                crash(name, ingredients, home, number, seen)
        number += 1
        if number >= max(operations.values()):
            return


def kills(name: str, ingredients: Path, home: Path, number: int, seen: Seen) -> None:
    """SIGKILL to one run at random moments, until there were so many; runs follow one another."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fullfed.runs.run", "trials.subjects", "transformers"])
    whole, chance, done = home / f"{name}-whole", random.Random(time.time_ns()), 0
    if not whole.exists():
        carry_out(name, ingredients, whole, None)
    last = 0
    while done < number:
        out = home / f"{name}-killed-{last}"
        last += 1
        while done < number:
            process = processes.Process(target=go, args=(name, ingredients, out))
            process.start()
            _wait_for(lambda out=out: (out / "updates.log").exists(), process)
            process.join(chance.uniform(0, 0.4))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            done += 1
            seen.counts["kills"] += 1
            seen.look(out)
        go(name, ingredients, out)
        seen.compare(out, whole, f"{name}, killed run {last}")


def _wait_for(there: Callable[[], bool], process: Any) -> None:
    while not there() and process.exitcode is None:
        time.sleep(0.005)


@app.command()
def main(
    methods: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(STATEFUL),
    crashes_: Annotated[int, typer.Option("--crashes", help="Simulated, of all methods.")] = 300,
    kills_: Annotated[int, typer.Option("--kills", help="By SIGKILL.")] = 40,
) -> None:
    """End runs and resume them; fail if one is not what it would have been."""
    torch.set_num_threads(1)
    names, seen = methods.split(","), Seen()
    assert set(names) <= METHODS.keys()
    with tempfile.TemporaryDirectory() as folder, models_in_memory():
        home = Path(folder)
        ingredients = write_ingredients(home / "ingredients")
        crashes(names, ingredients, home, crashes_, seen)
        for name in names:
            kills(name, ingredients, home, kills_ // len(names), seen)
    print(f"runs of {ROUNDS} rounds of {', '.join(names)}")
    seen.show()
    raise typer.Exit(1 if seen.faults else 0)


if __name__ == "__main__":
    app()
