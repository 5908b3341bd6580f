"""What a report of one run says, whatever its form: results, traffic, time, clients, hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fullfed.config import Recipe
from fullfed.evaluation.evaluate import Prediction
from fullfed.runs.folder import RunFolder
from fullfed.runs.history import base_numbers, round_numbers
from fullfed.runs.predictions import read_predictions
from fullfed.units import bytes_text, seconds_text

_MOST_REFUSALS = 20  # that are told one by one
_PARTS = {  # of a round's time: (heading, the part of peak_memory_by_part that it is in)
    "train": ("training", "visit"),
    "encode": ("encoding", "visit"),
    "aggregate": ("aggregation", "aggregate"),
    "evaluate": ("evaluation", "evaluate"),
}


@dataclass(frozen=True)
class RunRecord:
    """All that a run's folder tells, read at once.

    Attributes:
        name: the folder's.
        ended: whether the run has.
        recipe: the run's.
        base: base.json.
        rounds: the lines of metrics.jsonl; there may be none yet.
        listed: the clients, by their numbers; see ``RunFolder.clients``.
        predictions: the kept answers by model version.
    """

    name: str
    ended: bool
    recipe: Recipe
    base: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    listed: Sequence[Mapping[str, Any]]
    predictions: Mapping[int, Sequence[Prediction]]

    @classmethod
    def of(cls, folder: RunFolder) -> RunRecord:
        """
        Raises:
            UserError: there is no run, it has not begun, or its files are damaged.
        """
        base, rounds = folder.base(), folder.metrics()
        return cls(
            name=folder.path.resolve().name,
            ended=folder.summary_file.exists(),
            recipe=folder.recipe(),
            base=base,
            rounds=rounds,
            listed=folder.clients(),
            predictions=read_predictions(folder),
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that the run measures."""
        return self.recipe.evaluation.metrics

    def client(self, number: int) -> str:
        """A client's name, or its number where no name is known."""
        known = number < len(self.listed)
        return str(self.listed[number]["name"]) if known else f"client {number}"


@dataclass(frozen=True)
class ClientTotals:
    """One client's part in a run.

    Attributes:
        name: its name. samples: it trains on; None where that is not known.
        visits: how often it was asked. aggregated: how many of its reports are in an update.
        refused: how many were not let in, or did not come.
        up, down: bytes.
    """

    name: str
    samples: int | None
    visits: int
    aggregated: int
    refused: int
    up: int
    down: int


def client_totals(run: RunRecord) -> list[ClientTotals]:
    """Of every client that is known or was asked, by its number."""
    visits, aggregated, refused = Counter[int](), Counter[int](), Counter[int]()
    up, down = Counter[int](), Counter[int]()
    for record in run.rounds:
        visits.update(record["cohort"])
        aggregated.update(record["aggregated"])
        refused.update(one["client"] for one in record["refused"])
        up.update({int(c): n for c, n in record["bytes"]["up_by_client"].items()})
        down.update({int(c): n for c, n in record["bytes"]["down_by_client"].items()})
    numbers = sorted({*range(len(run.listed)), *visits})
    samples = {n: listed.get("samples") for n, listed in enumerate(run.listed)}
    return [
        ClientTotals(
            run.client(n), samples.get(n), visits[n], aggregated[n], refused[n], up[n], down[n]
        )
        for n in numbers
    ]


def refusals(run: RunRecord) -> list[str]:
    """A line for each report that was not let in, or did not come; of many, how many more."""
    lines = [
        f"Round {record['round'] + 1}, {run.client(one['client'])}: {one['reason']}"
        for record in run.rounds
        for one in record["refused"]
    ]
    more = len(lines) - _MOST_REFUSALS
    return lines if more <= 0 else [*lines[:_MOST_REFUSALS], f"{more} more"]


def traffic(run: RunRecord) -> list[list[list[str]]]:
    """Way, bytes in all, in the mean over rounds, in the mean over visits; each cell's lines."""
    visits = sum(len(record["cohort"]) for record in run.rounds)
    rows = []
    for way, heading in (("up", "from clients"), ("down", "to clients")):
        total = sum(record["bytes"][way] for record in run.rounds)
        numbers = (total, total / max(len(run.rounds), 1), total / max(visits, 1))
        rows.append([[way, heading], *([bytes_text(number)] for number in numbers)])
    return rows


def time_by_part(run: RunRecord) -> list[dict[str, Any]]:
    """Name, seconds, percent of their sum and peak memory of each part of the work."""
    seconds = {part: sum(r["seconds"][part] for r in run.rounds) for part in _PARTS}
    seconds["evaluate"] += run.base["seconds"]["evaluate"]
    whole = sum(seconds.values())
    return [
        {
            "name": heading,
            "seconds": seconds_text(seconds[part]),
            "percent": round(100 * seconds[part] / whole),
            "memory": _peak(run, memory),
        }
        for part, (heading, memory) in _PARTS.items()
    ]


def _peak(run: RunRecord, part: str) -> str:
    peaks = [record["peak_memory_by_part"].get(part) or 0 for record in run.rounds]
    most = max(peaks, default=0)
    return bytes_text(most) if most else "–"


def curves(run: RunRecord) -> dict[str, Any]:
    """The run's losses and other metrics in the form of comparison.json: a curve of the test set,
    and one of the clients' own records, unless nobody is told of those."""
    metrics = list(dict.fromkeys(("loss", *run.metrics)))
    test = [round_numbers(record, metrics) for record in run.rounds]
    training = [
        {**numbers, **dict.fromkeys(metrics), "loss": record["train_loss"]}
        for numbers, record in zip(test, run.rounds, strict=True)
    ]
    shown = {"test set": (base_numbers(run.base, metrics), test)}
    if any(record["train_loss"] is not None for record in run.rounds):
        shown["training"] = {}, training
    return {
        "metrics": metrics,
        "target": None,
        "methods": [
            {"label": label, "runs": [{"failed": None, "base": base, "rounds": rounds}]}
            for label, (base, rounds) in shown.items()
        ],
    }


def hashes(run: RunRecord) -> dict[str, str]:
    """What names the run's parts."""
    last = next((r for r in reversed(run.rounds) if r["model_hash"]), None)
    newest = {f"model after round {last['round'] + 1}": last["model_hash"]} if last else {}
    log = {"updates.log": run.rounds[-1]["log"]} if run.rounds else {}
    return {
        "base model": run.base["model_hash"],
        "data": run.base["data_hash"],
        **newest,
        **log,
        "run": run.base["checksum"],
    }


@dataclass(frozen=True)
class BeforeAndAfter:
    """A sample's answers by the base model and by the newest measured one."""

    sample: int
    prompt: str
    references: Sequence[str]
    before: str
    after: str


def answers(run: RunRecord) -> list[BeforeAndAfter]:
    """Of the kept samples, in their order; empty before the first measured round."""
    last = max(run.predictions, default=0)
    if last == 0:
        return []
    pairs = zip(run.predictions[0], run.predictions[last], strict=True)
    return [BeforeAndAfter(b.sample, b.prompt, b.references, b.answer, a.answer) for b, a in pairs]
