"""What an attacker who knows everything but the coins finds out: docs/results/privacy-audit.md.

    python benchmarks/canaries.py

An audit in one run (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846). Of some canaries (records
of a client, or clients of a federation, of random words) each is in the run by the toss of a coin.
The attacker knows all canaries and sees the model after every round: it estimates by least squares
how much of each canary's own contribution is in the changes, and guesses the coins of those that
it is surest of. Under (epsilon, delta) differential privacy so many right guesses are unlikely
(theorem 5.2), which gives a lower bound on epsilon. It must not exceed what the account says. In
the last row of each kind the noise is a tenth of what epsilon needs, which the audit should notice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import AutoTokenizer

from fullfed.config import parse_recipe
from fullfed.data.batches import collate
from fullfed.engines.simulation import Simulation, simulate
from fullfed.federation.inbox import Arrival
from fullfed.federation.log import read_log
from fullfed.federation.messages import Plan, Report, Update, decode
from fullfed.files import write_json
from fullfed.payloads import Payload
from fullfed.privacy.accountant import noise_for
from fullfed.privacy.integers import signed, unpack
from fullfed.quickstart import MODEL_PATH
from fullfed.runs.assembly import Assembly, assemble
from fullfed.runs.callback import Callback
from fullfed.runs.folder import RunFolder
from fullfed.runs.run import carry_out
from fullfed.training.loss import answer_loss

CANARIES, ROUNDS, DELTA, SURE = 200, 8, 1e-5, 0.05
GUESSED = CANARIES // 4  # the surest at either end
ASKED, ANSWERED = 6, 3  # tokens of a canary
FIRST = 259  # of the embedded tokenizer's tokens that are no single byte


@dataclass(frozen=True)
class Case:
    """What is audited.

    Attributes:
        protects: the recipe's.
        epsilon: that the run is to keep to.
        rate: at which records are in a step.
        share: of the noise that this needs.
    """

    protects: str
    epsilon: float
    rate: float = 1.0
    share: float = 1.0


CASES = (
    Case("record", 1.0),
    Case("record", 4.0),
    Case("record", 1.0, rate=0.25),
    Case("record", 4.0, rate=0.25),
    Case("record", 1.0, rate=0.25, share=0.1),
    Case("client", 1.0),
    Case("client", 4.0),
    Case("client", 1.0, share=0.1),
)


def write_canaries(folder: Path, count: int) -> None:
    """Records of random tokens, and a test set of two more."""
    tokenizer, drawn = AutoTokenizer.from_pretrained(MODEL_PATH), np.random.default_rng(0)

    def words(count: int) -> str:
        return str(tokenizer.decode(drawn.integers(FIRST, len(tokenizer), count)))

    for name, records in (("train", count), ("test", 2)):
        lines = [
            json.dumps({"instruction": words(ASKED), "output": words(ANSWERED)})
            for _ in range(records)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def recipe(folder: Path, case: Case, present: int) -> dict[str, Any]:
    """Every visit is one step, so that every step is seen."""
    record = case.protects == "record"
    noise = case.share * noise_for(case.epsilon, DELTA, case.rate, ROUNDS)
    privacy = {"protects": case.protects, "noise": noise, "delta": DELTA, "clip": 1.0}
    batch = max(round(case.rate * present), 1) if record else 1
    return {
        "model": {"path": "builtin"},
        "data": {
            "train": str(folder / "train.jsonl"),
            "test": str(folder / "test.jsonl"),
            "partition": "iid",
            "clients": 1 if record else CANARIES,
            "template": "alpaca",
        },
        "federation": {"rounds": ROUNDS, "clients_per_round": 1 if record else CANARIES},
        "local": {"learning_rate": 0.1, "steps": 1, "batch_size": batch, "clip": None},
        "aggregation": {"name": "mean", "weights": "equal"},
        "evaluation": {"every": ROUNDS},
        "method": {"name": "fedavg"}
        if record
        else {"name": "ferret", "coordinates": 4096, "seeds": "shared"},
        "privacy": privacy,
    }


class Attacker:
    """Estimates how much of each canary is in what came out, over all rounds."""

    def __init__(self) -> None:
        self._products = np.zeros((CANARIES, CANARIES))
        self._seen = np.zeros(CANARIES)

    def sees(self, contributions: NDArray[np.floating], change: NDArray[np.floating]) -> None:
        """
        Args:
            contributions: what each canary would add, shape (canaries, K).
            change: what came out, shape (K,).
        """
        self._products += contributions @ contributions.T
        self._seen += contributions @ change

    def presence(self) -> NDArray[np.float64]:
        """Each canary's, in the least squares; the larger, the surer that it was there."""
        return np.asarray(np.linalg.lstsq(self._products, self._seen)[0])


class RecordAttacker(Callback):
    """Sees the weights before and after each round, and knows the records."""

    def __init__(self, assembly: Assembly, clip: float) -> None:
        self.attacker, self._clip = Attacker(), clip
        self._model = assembly.model
        self._records = assembly.data.clients[0].examples

    def on_round_begin(self, round: int) -> None:
        self._before = self._flat()
        self._own = np.stack([self._gradient(n) for n in range(len(self._records))])

    def on_round_end(self, record: Mapping[str, Any]) -> None:
        self.attacker.sees(self._own, self._before - self._flat())

    def _flat(self) -> NDArray[np.float64]:
        return (
            torch.cat([p.detach().reshape(-1) for p in self._model.parameters()]).double().numpy()
        )

    def _gradient(self, number: int) -> NDArray[np.float32]:
        loss = answer_loss(self._model, collate([self._records[number]]))
        parts = torch.autograd.grad(loss, list(self._model.parameters()))
        flat = torch.cat([part.reshape(-1) for part in parts])
        return np.asarray((flat * min(1.0, self._clip / float(flat.norm()))).numpy())


class Absent:
    """An engine whose clients all work, and of whom some are not heard: what they would have sent
    the attacker knows."""

    def __init__(self, inner: Simulation, present: NDArray[np.bool_]) -> None:
        self._inner, self._present = inner, present
        self.sent: list[dict[int, NDArray[np.float32]]] = []

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        own: dict[int, NDArray[np.float32]] = {}
        bits = decode(next(iter(plans.values())), Plan).values["bits"]
        for arrival in self._inner.exchange(plans, seconds):
            assert arrival.payload is not None
            own[arrival.sender] = integers(decode(arrival.payload, Report), bits)
            if self._present[arrival.sender]:
                yield arrival
            else:
                yield Arrival(arrival.sender, None, failure="the coin had it stay away")
        self.sent.append(own)


def integers(message: Report | Update, bits: Any) -> NDArray[np.float32]:
    """The numbers of a sum, or of one client's part in it."""
    packed = message.tensors["numbers"].numpy()
    return signed(unpack(packed, len(packed) * 8 // bits, bits), bits).astype(np.float32)


def estimates(case: Case, present: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Each canary's presence as the attacker sees it, and the account's epsilon."""
    with TemporaryDirectory() as name:
        home = Path(name)
        write_canaries(home, CANARIES)
        chosen = parse_recipe(recipe(home, case, int(present.sum())), "the audit")
        assembly, run = assemble(chosen), RunFolder(home / "run")
        run.create(assembly.recipe)
        if case.protects == "record":
            watching = RecordAttacker(assembly, clip=1.0)
            (client,) = assembly.data.clients
            there = [client.examples[n] for n in np.flatnonzero(present).tolist()]
            data = replace(assembly.data, clients=(replace(client, examples=there),))
            carry_out(run, replace(assembly, data=data), [watching])
            return watching.attacker.presence(), run.metrics()[-1]["epsilon"]
        engines: list[Absent] = []

        def connect(*about: Any) -> Absent:
            engines.append(Absent(simulate(*about), present))
            return engines[0]

        carry_out(run, assembly, connect=connect)
        attacker = Attacker()
        for own, payload in zip(engines[0].sent, read_log(run.log_file), strict=True):
            update = decode(payload, Update)
            total = integers(update, update.values["bits"])
            attacker.sees(np.stack([own[n] for n in range(CANARIES)]), total)
        return attacker.presence(), run.metrics()[-1]["epsilon"]


def likelihood(right: int, guesses: int, epsilon: float) -> float:
    """How likely so many right guesses are at most (theorem 5.2, as its appendix computes it)."""
    law = stats.binom(guesses, 1 / (1 + math.exp(-epsilon)))
    at_least = float(law.sf(right - 1))
    steps = np.arange(1, right + 1)
    excess = np.cumsum(law.pmf(right - steps)) / steps
    return min(at_least + 2 * CANARIES * DELTA * float(excess.max(initial=0.0)), 1.0)


def lower_bound(right: int, guesses: int) -> float:
    """The largest epsilon that so many right guesses refute, with an error of ``SURE``."""
    low, high = 0.0, 20.0
    if likelihood(right, guesses, 0.0) > SURE:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if likelihood(right, guesses, middle) < SURE else (low, middle)
    return low


def audit(case: Case, seed: int) -> dict[str, Any]:
    present = np.random.default_rng(seed).random(CANARIES) < 0.5
    presence, epsilon = estimates(case, present)
    order = np.argsort(presence)
    right = int((~present[order[:GUESSED]]).sum() + present[order[-GUESSED:]].sum())
    said = case.epsilon if case.share < 1 else epsilon
    return {
        "protects": case.protects,
        "rate": case.rate,
        "noise": case.share * noise_for(case.epsilon, DELTA, case.rate, ROUNDS),
        "share": case.share,
        "said": said,
        "right": right,
        "found": lower_bound(right, 2 * GUESSED),
        "most": lower_bound(2 * GUESSED, 2 * GUESSED),
    }


def main() -> None:
    rows = []
    print("| protects | rate | noise | epsilon of the account | right guesses | epsilon at least |")
    print("|---|---|---|---|---|---|")
    for number, case in enumerate(CASES):
        row = audit(case, seed=number)
        rows.append(row)
        much = "" if case.share == 1 else f", {case.share:g} of what it needs"
        print(
            f"| {row['protects']} | {row['rate']:g} | {row['noise']:.2f}{much} | {row['said']:.2f} "
            f"| {row['right']} of {2 * GUESSED} | {row['found']:.2f} |",
            flush=True,
        )
    write_json(Path(__file__).resolve().parents[1] / "docs/results/privacy-audit.json", rows)
    print(f"\nAll right would be {rows[0]['most']:.2f}.")


if __name__ == "__main__":
    main()
