"""Damages every file of a run's folder in many ways, and sees what every command makes of it.

    PYTHONPATH=tests python -m trials.damage --regions 40

A command must come to what it would have come to, or refuse in one sentence. Nothing else counts:
a traceback is a fault, and another model is the worst of all.
"""

from __future__ import annotations

import io
import itertools
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer

from fullfed.errors import UserError
from fullfed.federation.replica import content_hash
from fullfed.reports import runs as reports
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from fullfed.runs.replay import replay, verify
from runs.small import write_ingredients
from trials.subjects import METHODS, Subject, copied, models_in_memory, subject

SAME, TOLD, REFUSED = "the same", "told", "refused"
DIFFERENT, TRACEBACK = "silently different", "traceback"

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@dataclass
class Tally:
    """What the damages came to.

    Attributes:
        counts: by the command and the outcome.
        damages: how many were made.
        faults: what is wrong, each in a line.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    damages: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, command: str, outcome: str, where: str) -> None:
        self.counts[command, outcome.split(":")[0]] += 1
        if outcome.startswith((DIFFERENT, TRACEBACK)):
            self.faults.append(f"{where}: {command}: {outcome}")

    def show(self) -> None:
        outcomes = (SAME, TOLD, REFUSED, DIFFERENT, TRACEBACK)
        print(f"{self.damages} damages")
        print(f"{'':10}", *(f"{outcome:>20}" for outcome in outcomes), sep="")
        for command in dict.fromkeys(command for command, _ in self.counts):
            row = (f"{self.counts[command, outcome]:>20}" for outcome in outcomes)
            print(f"{command:10}", *row, sep="")
        for fault in self.faults:
            print(fault)


def damages(
    data: bytes, neighbour: bytes | None, regions: int, chance: random.Random
) -> Iterator[tuple[str, bytes | None]]:
    """(what was done, the file's content afterwards; None where it is deleted)."""
    yield "deleted", None
    yield "emptied", b""
    if neighbour is not None and neighbour != data:
        yield "a neighbour's", neighbour
    yield "something added", data + b"\n{}\n"
    for begin, end in _regions(len(data), regions):
        place = chance.randrange(begin, end)
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        yield f"bit flipped at {place}", bytes(flipped)
    for begin, end in _regions(len(data), max(regions // 4, 1)):
        place = chance.randrange(begin, end)
        yield f"cut at {place}", data[:place]
        yield f"not UTF-8 at {place}", data[:place] + b"\xff\xfe" + data[place:]
        yield f"zeros at {begin}", data[:begin] + bytes(end - begin) + data[end:]
    if _is_text(data):
        yield from _damages_of_text(data, regions, chance)


def _regions(size: int, number: int) -> Iterator[tuple[int, int]]:
    """The file in so many parts of about one length, or one for each byte."""
    number = min(number, size)
    ends = [size * part // number for part in range(number + 1)] if number else []
    yield from itertools.pairwise(ends)


def _is_text(data: bytes) -> bool:
    return data[:1] in b'{["m' and b"\0" not in data


def _damages_of_text(
    data: bytes, regions: int, chance: random.Random
) -> Iterator[tuple[str, bytes]]:
    lines = data.splitlines(keepends=True)
    for number in sorted(chance.sample(range(len(lines)), min(regions, len(lines)))):
        before, line, after = lines[:number], lines[number], lines[number + 1 :]
        yield f"line {number} removed", b"".join([*before, *after])
        yield f"line {number} twice", b"".join([*before, line, line, *after])
        if after:
            yield f"line {number} later", b"".join([*before, after[0], line, *after[1:]])
    keys = sorted(set(re.findall(rb'"(\w+)":|^(\w+) =', data, re.MULTILINE)))
    for quoted, bare in chance.sample(keys, min(regions, len(keys))):
        old, new = (b'"%s":', b'"%s_":') if quoted else (b"%s =", b"%s_ =")
        key = quoted or bare
        yield f"key {key.decode()} renamed", data.replace(old % key, new % key, 1)
    numbers = [match.span() for match in re.finditer(rb"(?<=[ :])\d+", data)]
    for begin, end in chance.sample(numbers, min(regions, len(numbers))):
        yield f"number at {begin} changed", data[:begin] + b"7" + data[end:]


class _Notices(run.Callback):
    def __init__(self) -> None:
        self.told = False

    def on_notice(self, text: str) -> None:
        self.told = True


def _resume(subject: Subject, out: Path) -> str:
    notices = _Notices()
    summary = run.resume(out, [notices])
    log = (out / "updates.log").read_bytes()
    if log == subject.log and summary["model_hash"] == subject.hashes[-1]:
        return SAME
    one_goes_on = log.startswith(subject.log) or subject.log.startswith(log)
    return TOLD if notices.told and one_goes_on else f"{DIFFERENT}: the log or the model"


def _verify(subject: Subject, out: Path) -> str:
    verify(RunFolder(out))
    return SAME  # whatever it says; the model is what ``export`` finds


def _export(subject: Subject, out: Path) -> str:
    model, _ = replay(RunFolder(out))
    found = content_hash(dict(model.named_parameters()))
    return SAME if found in subject.hashes[subject.committed :] else f"{DIFFERENT}: the model"


def _plot(subject: Subject, out: Path) -> str:
    """The curves; a line of metrics.jsonl that a crash could have torn may be missing."""
    for curve in (reports._loss_against_rounds, reports._loss_against_bytes):
        whole, found = curve(RunFolder(subject.folder)), curve(RunFolder(out))
        if found not in (whole, whole[:-1]):
            return f"{DIFFERENT}: a curve"
    return SAME


# Each takes the damaged folder as it is; the last one changes it.
COMMANDS: dict[str, Callable[[Subject, Path], str]] = {
    "plot": _plot,
    "verify": _verify,
    "export": _export,
    "resume": _resume,
}


def outcome(command: Callable[[Subject, Path], str], subject: Subject, out: Path) -> str:
    """What a command comes to in a damaged folder."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return command(subject, out)
    except UserError as error:
        return REFUSED if "\n" not in str(error) else f"{TRACEBACK}: {error}"
    except Exception as error:
        return f"{TRACEBACK}: {error!r}"


def damaged_copies(
    whole: Path, neighbour: Path, scratch: Path, regions: int, chance: random.Random, share: float
) -> Iterator[tuple[str, Path]]:
    """(what was done to which file, a copy of the folder where it was done).

    Args:
        share: of all damages, drawn at random.
    """
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        name = path.relative_to(whole)
        theirs = neighbour / name
        other = theirs.read_bytes() if theirs.exists() else None
        for what, data in damages(path.read_bytes(), other, regions, chance):
            if chance.random() >= share:
                continue
            out = copied(whole, scratch)
            if data is None:
                (out / name).unlink()
            else:
                (out / name).write_bytes(data)
            yield f"{name}: {what}", out


def damage_all(
    subject: Subject, home: Path, regions: int, seed: int, tally: Tally, share: float = 1.0
) -> None:
    """Damage each file of the subject's folder, one at a time."""
    chance, neighbour = random.Random(seed), subject.neighbour
    copies = damaged_copies(subject.folder, neighbour, home / "damaged", regions, chance, share)
    for what, out in copies:
        tally.damages += 1
        for title, command in COMMANDS.items():
            tally.add(title, outcome(command, subject, out), f"{subject.name}: {what}")


@app.command()
def main(
    methods: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(METHODS),
    regions: Annotated[int, typer.Option(min=1, help="Flipped bits in each file.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, max=3, help="Of the unfinished runs.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the damages.")] = 0,
) -> None:
    """Damage finished and unfinished runs; fail if anything is accepted that should not be."""
    torch.set_num_threads(1)
    total = Tally()
    with tempfile.TemporaryDirectory() as folder, models_in_memory():
        home = Path(folder)
        ingredients = write_ingredients(home / "ingredients")
        for name in methods.split(","):
            for length in (None, rounds):
                tally = Tally()
                one = subject(name, ingredients, home, length)
                damage_all(one, home, regions, seed, tally)
                print(
                    f"{one.name}: {tally.damages} damages, {len(tally.faults)} faults", flush=True
                )
                total.counts += tally.counts
                total.damages += tally.damages
                total.faults += tally.faults
    total.show()
    raise typer.Exit(1 if total.faults else 0)


if __name__ == "__main__":
    app()
