"""Sends mutated messages of every method, codec and rule to everything that decodes them.

    python tests/trials/messages.py --messages 100000 --seed 0

Honest reports, plans, updates, snapshots, submodels, settings, orders, answers and logs are spoilt
(mutations.py, packed_mutations.py), one change each, and what becomes of each is counted:

    refused     with an error of ours, and nothing was changed
    half-way    refused, but the replica was changed by then: a node forgets it and rebuilds it
    same        accepted, and means what the honest message meant
    other       accepted with another meaning that an honest sender's could have had: what is
                counted beside it says what differs
    damage      accepted, and something changed that nobody could see; there must be none
    traceback   an error that is not ours; there must be none

Prints the counts, and the first of each kind that must not be. Exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from fullfed.engines.node import _UNSAID, NodeWorker
from fullfed.engines.node_messages import Answer, Order, decode_settings
from fullfed.errors import MessageError, UserError
from fullfed.federation.client import SubmodelWorker
from fullfed.federation.inbox import Arrival, Inbox
from fullfed.federation.log import Log, read_log
from fullfed.federation.messages import Plan, Report, Update, decode, encode
from fullfed.runs.assembly import choose
from fullfed.training.quantised import blank
from methods.test_compositions import data
from methods.tiny import same
from trials.federations import CLIENTS, LIMITS, Subject, tables
from trials.mutations import spoil_bytes, spoil_frames, spoil_snapshot, spoil_text
from trials.packed_mutations import spoil_message

REFUSED, HALF, SAME, DAMAGE, TRACEBACK = "refused", "half-way", "same", "damage", "traceback"
Outcome = str  # one of these, or "other: " and what differs


@dataclass
class Counts:
    """What became of messages, by what they were, and examples of what must not be."""

    outcomes: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, outcome: Outcome, where: str, text: str = "") -> None:
        self.outcomes[kind, outcome] += 1
        if outcome in (DAMAGE, TRACEBACK, HALF):
            last = text.strip().splitlines()[-1] if text else ""
            self.faults.setdefault(f"{kind} {outcome} {last}", f"{where}\n{text}")

    @property
    def total(self) -> int:
        return self.outcomes.total()

    def table(self) -> str:
        """A row for each kind of message, in Markdown."""
        outcomes = sorted({outcome for _, outcome in self.outcomes})
        kinds = sorted({kind for kind, _ in self.outcomes})
        rows = [["message", *outcomes], ["---", *["---:"] * len(outcomes)]]
        rows += [[kind, *(str(self.outcomes[kind, o]) for o in outcomes)] for kind in kinds]
        sums = [sum(self.outcomes[kind, o] for kind in kinds) for o in outcomes]
        rows.append(["all", *map(str, sums)])
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)


class Trial:
    """Sends spoilt messages of one federation.

    Args:
        name: of the federation.
        folder: for files.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder
        self._subject = Subject(tables()[name])
        self._log = _honest_log(folder / "honest.log", self._subject)
        self._node = self._new_node(0)
        self._nodes = 0
        kinds: dict[str, tuple[Callable[[Random], Outcome], int]] = {
            "report": (self._report, 8),
            "update": (self._update, 8),
            "plan": (self._plan, 2),
            "snapshot": (self._snapshot, 4),
            "settings": (self._settings, 4),
            "order": (self._order, 2),
            "answer": (self._answer, 2),
            "log": (self._read, 4),
        }
        if self._subject.weak:
            kinds["submodel"] = (self._submodel, 4)
        self._kinds = kinds

    def send(self, random: Random, counts: Counts, where: str) -> None:
        """One message."""
        names = list(self._kinds)
        [kind] = random.choices(names, [weight for _, weight in self._kinds.values()])
        try:
            outcome, text = self._kinds[kind][0](random), ""
        except (MessageError, UserError) as error:
            outcome = REFUSED if "\n" not in str(error) and str(error) else TRACEBACK
            text = str(error)
        except Exception:
            outcome, text = TRACEBACK, traceback.format_exc()
        counts.add(kind, outcome, where, text)

    # Each returns what became of a message, or lets our error through where it was refused.

    def _report(self, random: Random) -> Outcome:
        subject, payload = self._subject, spoil_message(self._subject.report, random)
        inbox = Inbox(subject.method, subject.plans, subject.worker.replica.model)
        [*accepted] = inbox.in_client_order([Arrival(subject.client(), payload)])
        if not accepted:
            return REFUSED if inbox.refused else DAMAGE
        [report] = accepted
        honest = decode(subject.report, Report)
        if (report.round, report.client) != (honest.round, honest.client):
            return DAMAGE
        outcome = _difference(report, honest, payload, subject.report)
        if outcome != SAME:
            plan = next(plan for plan in subject.plans if plan.client == report.client)
            with suppress(MessageError, UserError):  # as a round, a replica may refuse what it is
                update = subject.method.aggregate([plan], [report], subject.first)
                if all(bool(torch.isfinite(t).all()) for t in update.tensors.values()):
                    self._deliver(encode(update))
            subject.restore()
        return outcome

    def _update(self, random: Random) -> Outcome:
        payload = spoil_message(self._subject.update, random)
        try:
            self._deliver(payload)
        except (MessageError, UserError):
            clean = same(self._subject.worker.replica.state(), self._subject.weights)
            self._subject.restore()
            return REFUSED if clean else HALF
        now = self._subject.worker.replica.state()
        update, honest = decode(payload, Update), decode(self._subject.update, Update)
        outcome = _difference(update, honest, payload, self._subject.update)
        unseen = outcome == SAME and not same(now, self._subject.after)
        self._subject.restore()
        return DAMAGE if unseen else outcome

    def _deliver(self, payload: bytes) -> None:
        self._subject.worker.deliver(payload)

    def _plan(self, random: Random) -> Outcome:
        subject, payload = self._subject, spoil_message(self._subject.plan, random)
        plan = decode(payload, Plan)
        if plan.client >= CLIENTS:  # an engine asks those it knows
            return REFUSED
        arrival = subject.worker.visit(payload)
        clean = same(subject.worker.replica.state(), subject.weights)
        if not clean:
            subject.restore()
            return DAMAGE
        if arrival.payload is None:
            return REFUSED
        return _difference(plan, decode(subject.plan, Plan), payload, subject.plan)

    def _snapshot(self, random: Random) -> Outcome:
        subject, file = self._subject, self._folder / "snapshot"
        file.write_bytes(spoil_snapshot(subject.snapshot, random))
        replica = subject.worker.replica
        try:
            replica.load_snapshot(file)
        except UserError:
            clean = same(replica.state(), subject.weights)
            subject.restore()
            return REFUSED if clean else DAMAGE
        alike = same(replica.state(), subject.after) and replica.version == 2
        subject.restore()
        return SAME if alike else DAMAGE

    def _submodel(self, random: Random) -> Outcome:
        subject, static = self._subject, self._subject.static_weights
        submodel = subject.submodel
        if random.random() < 0.5:
            static = spoil_message(static, random)
        else:
            submodel = spoil_message(submodel, random)
        model = blank(type(subject.worker.replica.model), subject.worker.replica.model.config)
        worker = SubmodelWorker(model, subject.method, static, dict(enumerate(data(CLIENTS))))
        if worker.visit(subject.plan, submodel).payload is None:
            return REFUSED
        for sent, honest in ((static, subject.static_weights), (submodel, subject.submodel)):
            found = _difference(decode(sent, Update), decode(honest, Update), sent, honest)
            if found != SAME:
                return found
        return SAME

    def _settings(self, random: Random) -> Outcome:
        sent = spoil_text(self._subject.order.settings, random)
        told = decode_settings(sent, "model", "cpu", "data")
        LIMITS.check_settings(told, not self._subject.weak)
        LIMITS.check_work(told.recipe.local, 9)
        choose(told.recipe)
        honest = decode_settings(self._subject.order.settings, "model", "cpu", "data")
        alike = (told.recipe, told.clients, told.base_hash, told.scales_hash) == (
            honest.recipe, honest.clients, honest.base_hash, honest.scales_hash,
        )  # fmt: skip
        return SAME if alike else "other: settings"

    def _order(self, random: Random) -> Outcome:
        subject = self._subject
        order = subject.order if subject.weak or random.random() < 0.5 else subject.by_snapshot
        spoil = {"settings": spoil_text, "description": spoil_text, "snapshot": spoil_snapshot}
        spoil["scales"] = spoil_bytes
        frames = spoil_frames(
            order.frames(),
            {**spoil, **dict.fromkeys(("plan", "update", "last", "s"), spoil_message)},
            random,
        )
        fresh = random.random() < 0.3  # else the node may know the run
        if fresh:
            self._nodes += 1
            self._node.leave()
            self._node = self._new_node(self._nodes)
        with _logged() as records:
            answer = Answer.of(self._node.handle(frames))
        if any(record.exc_info for record in records):
            raise RuntimeError(_formatted(records))
        if answer.failure == _UNSAID:
            return "refused, reason unsaid"
        if not answer.report:
            return REFUSED if answer.failure else "asked for more"
        report = decode(answer.report, Report)
        if report.client != decode(frames["plan"], Plan).client:
            return DAMAGE
        alike = Order.of(frames) == order
        return SAME if alike else "other: order"

    def _answer(self, random: Random) -> Outcome:
        honest = Answer(1, self._subject.report, "", 0.5, 0.25)
        frames = spoil_frames(honest.frames(), {"description": spoil_text}, random)
        answer = Answer.of(frames)
        return SAME if answer == honest else "other: answer"

    def _read(self, random: Random) -> Outcome:
        file = self._folder / "log"
        file.write_bytes(spoil_bytes(self._log, random))
        honest = list(read_log(self._folder / "honest.log"))
        found = list(read_log(file))
        with Log(file) as log:
            again = [log.read(number) for number in range(len(log))]
        if found != again or found != honest[: len(found)]:
            return DAMAGE
        return SAME if found == honest else "other: torn tail"

    def _new_node(self, number: int) -> NodeWorker:
        return NodeWorker(self._folder / f"node-{number}", self._subject.loader(), LIMITS)

    def close(self) -> None:
        self._node.leave()


def _difference(
    found: Plan | Report | Update, honest: Plan | Report | Update, sent: bytes, due: bytes
) -> Outcome:
    """What of an accepted message is another than in the honest one."""
    if sent == due or encode(found) == encode(honest):
        return SAME
    names = [n for n in vars(found) if n not in ("tensors", "values")]
    differ = [n for n in names if getattr(found, n) != getattr(honest, n)]
    differ += ["values"] if found.values != honest.values else []
    if found.tensors.keys() != honest.tensors.keys():
        return "other: names"
    kinds = {n: (t.shape, t.dtype) for n, t in found.tensors.items()}
    if kinds != {n: (t.shape, t.dtype) for n, t in honest.tensors.items()}:
        return "other: shapes"
    return "other: " + (", ".join(differ) or "numbers")


def _honest_log(file: Path, subject: Subject) -> bytes:
    with Log(file) as log:
        for payload in (subject.update, subject.report[:200], b"x"):
            log.append(payload)
    return file.read_bytes()


@contextmanager
def _logged() -> Iterator[list[logging.LogRecord]]:
    """What the node's worker logs meanwhile."""
    records: list[logging.LogRecord] = []
    handler, logger = logging.Handler(), logging.getLogger("fullfed")
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _formatted(records: list[logging.LogRecord]) -> str:
    return "\n".join(logging.Formatter().format(record) for record in records)


def go(messages: int, seed: int, names: list[str] | None = None) -> Counts:
    """So many messages, shared out among federations.

    Args:
        names: of the federations; all there are by default.
    """
    counts, chosen = Counts(), names or list(tables())
    for place, name in enumerate(chosen):
        with tempfile.TemporaryDirectory(prefix="fullfed-trial-") as folder:
            trial = Trial(name, Path(folder))
            for number in range(place, messages, len(chosen)):
                where = f"{name}, seed {seed}, message {number}"
                trial.send(Random(f"{seed} {name} {number}"), counts, where)
            trial.close()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="the name of one federation")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    began = time.monotonic()
    names = [given.only] if given.only else list(tables())
    counts = go(given.messages, given.seed, names)
    seconds, many = time.monotonic() - began, "s" if len(names) > 1 else ""
    print(counts.table())
    print(f"\n{counts.total} messages of {len(names)} federation{many} in {seconds:.0f} s")
    for fault, example in counts.faults.items():
        print(f"\n== {fault}\n{example}")
    sys.exit(bool(counts.faults))


if __name__ == "__main__":
    main()
