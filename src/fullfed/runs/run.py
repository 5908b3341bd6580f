"""Carrying out a recipe, from the first round or from wherever a crash left it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fullfed.config import Recipe
from fullfed.errors import UserError
from fullfed.evaluation.evaluate import evaluate, recorded
from fullfed.federation.client import Worker
from fullfed.federation.inbox import Arrival
from fullfed.federation.log import Log
from fullfed.federation.messages import encode
from fullfed.federation.replica import snapshot_version
from fullfed.federation.server import Engine, Traffic, run_round
from fullfed.headway import Headway
from fullfed.methods.summing import keyed
from fullfed.payloads import Payload
from fullfed.runs.account import UNMEASURED, account_of, summary_of
from fullfed.runs.assembly import Assembly, assemble, make_replica, make_worker
from fullfed.runs.best import is_over, measurement
from fullfed.runs.binding import changes_since
from fullfed.runs.brought import check_brought, with_trainer
from fullfed.runs.budget import Budget
from fullfed.runs.callback import Callback
from fullfed.runs.checking import round_check
from fullfed.runs.curvature import take_scales
from fullfed.runs.environment import PeakMemory, arithmetic
from fullfed.runs.folder import RunFolder
from fullfed.runs.owners import name_of, with_owners
from fullfed.runs.predictions import forget_predictions, write_predictions
from fullfed.runs.replay import check_recorded, logged_update, record_read
from fullfed.runs.rollback import finish_rollback
from fullfed.runs.simulated import computing_in, plans_under_way, simulation, threads_of
from fullfed.runs.snapshots import (
    keep_best,
    leave_out,
    load_snapshot,
    newest_snapshot,
    recorded_hashes,
    take_snapshot,
    unkept_best,
)
from fullfed.training.trainer import Trainer


def start(
    recipe: Recipe,
    path: Path,
    callbacks: Sequence[Callback] = (),
    trainer: Trainer | None = None,
) -> dict[str, Any]:
    """Carry out a recipe into a new folder; return the summary.

    Args:
        trainer: the clients', in the place of the recipe's.

    Raises:
        UserError: bad input, or a round in which no client could work.
    """
    recipe = with_trainer(recipe, trainer)
    assembly = assemble(recipe, trainer)
    folder = RunFolder(path)
    folder.create(assembly.recipe)
    return carry_out(folder, assembly, callbacks)


def resume(
    path: Path, callbacks: Sequence[Callback] = (), trainer: Trainer | None = None
) -> dict[str, Any]:
    """Carry a run on from where it stopped; return the summary.

    Args:
        trainer: the clients', where the run began with one that was given.

    Raises:
        UserError: there is no run here, or it is damaged.
    """
    folder = RunFolder(path)
    recipe = folder.recipe()
    check_brought(recipe, trainer)
    return carry_out(folder, assemble(recipe, trainer), callbacks)


# Makes a run's engine from its recipe, the server's replica with the data of the clients in this
# process, the log so far, and what is known of the model version that each client holds.
Connect = Callable[[Recipe, Worker, Log, Traffic], Engine]


def carry_out(
    folder: RunFolder,
    assembly: Assembly,
    callbacks: Sequence[Callback] = (),
    connect: Connect | None = None,
    quorum: float = 0.0,
    samples: Mapping[int, int] | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Carry a run on from wherever its folder says it is to its end; return the summary.

    Args:
        connect: makes the engine; without it clients are simulated as the recipe says.
        quorum: the share of a cohort without whose reports the run stops.
        samples: how many clients have, as far as it is known; those of the clients whose data are
            in this process need not be said.
        name: names the run, as its clients know it; the folder says where it is not said.

    Raises:
        UserError: the folder is damaged, or a round in which too few clients could work.
    """
    here = {n: len(client.examples) for n, client in enumerate(assembly.data.clients)}
    known = {**here, **(samples or {})}
    simulated = connect is None
    threads = threads_of(assembly.recipe.simulation) if simulated else torch.get_num_threads()
    with computing_in(threads):
        return _Run(folder, assembly, callbacks, connect, quorum, known, name).carry_out()


@dataclass
class _Run:
    """The server's side of one run; the fields are what ``carry_out`` takes, all sizes known."""

    folder: RunFolder
    assembly: Assembly
    callbacks: Sequence[Callback]
    connect: Connect | None
    quorum: float
    samples: Mapping[int, int]
    name: str | None = None

    def __post_init__(self) -> None:
        method = self.assembly.method
        if method.sums is not None or method.protects_records:
            self.assembly = replace(self.assembly, method=keyed(method, self.folder.secret()))
        self.recipe = self.assembly.recipe
        self.replica = make_replica(self.recipe, self.assembly.model, self.assembly.method)
        self.arithmetic = arithmetic(self.replica.model.device)
        self.peaks = PeakMemory()
        self.counted = time.perf_counter()  # up to when time is in the lines of metrics.jsonl

    def carry_out(self) -> dict[str, Any]:
        finish_rollback(self.folder)
        method, table = self.assembly.method, self.recipe.privacy
        self.budget = Budget.of(self.folder, table, method, self.samples)
        with Log(self.folder.log_file, self.folder.digests()) as log:
            self.folder.clear_partial()
            for callback in self.callbacks:
                callback.on_run_begin(self.assembly, len(log))
            method = take_scales(self.folder, self.assembly, self._observe)
            self.assembly, self.replica.method = replace(self.assembly, method=method), method
            base = self._evaluate_base()
            owned, summing = with_owners(self.assembly, self.folder, self._name, self.budget)
            states = self.folder.states()
            self.worker = make_worker(owned, self.replica, states, self._observe, summing)
            traffic = Traffic(log, self.worker.snapshot_bytes, self.assembly.method.cumulative)
            with self._engine(log, traffic) as engine:
                self._recover(log, engine)
                for text in changes_since(base, self.folder.recipe(), self.arithmetic):
                    self._notice(text)
                traffic.restore(self.folder.metrics())
                rounds = self.recipe.federation.rounds
                if self.replica.version < rounds:
                    self.folder.summary_file.unlink(missing_ok=True)  # of fewer rounds
                while self.replica.version < rounds and not self._over(base):
                    self._round(log, engine)
        summary = summary_of(self.recipe, base, self.folder.metrics(), self.replica)
        self.folder.write_summary(summary)
        for callback in self.callbacks:
            callback.on_run_end(summary)
        return summary

    def _engine(self, log: Log, traffic: Traffic) -> AbstractContextManager[Engine]:
        if self.connect is not None:
            return nullcontext(self.connect(self.recipe, self.worker, log, traffic))
        method, peaks = self.assembly.method, self.peaks
        return simulation(self.recipe, self.folder, method, self.worker, log, traffic, peaks)

    @property
    def _name(self) -> str:
        return name_of(self.assembly, self.folder, self.name)

    def _over(self, base: Mapping[str, Any]) -> bool:
        """Whether the run ends before its last round, and if so says it."""
        if not self.budget.allows(self.replica.version + 1):
            self._notice("another round would exceed privacy.epsilon, so the run ends")
            return True
        over = is_over(base, self.measured, self.recipe.evaluation)
        if over:
            table = self.recipe.evaluation
            self._notice(
                f"{table.decides} has not become better in {table.patience} measurements, so the "
                "run ends"
            )
        return over

    def _evaluate_base(self) -> dict[str, Any]:
        """What is known of the base model, measured unless it was before the run stopped."""
        model_hash, data_hash = self.replica.content_hash(), self.assembly.data.content_hash()
        if not self.folder.begun:
            started = time.perf_counter()
            base = {"model_hash": model_hash, "data_hash": data_hash, **self._evaluate()}
            base["seconds"] = {"evaluate": time.perf_counter() - started}
            clients = [
                {"name": client.name, "samples": len(client.examples)}
                for client in self.assembly.data.clients
            ]
            self.folder.write_base({**base, "clients": clients, "arithmetic": self.arithmetic})
        base = self.folder.base()
        self.folder.check_data(self.recipe, data_hash)
        self.folder.check_base_model(self.recipe, model_hash)
        return base

    def _recover(self, log: Log, engine: Engine) -> None:
        """Bring replica, accounts and metrics to where the log says the run is, and have visits
        made again that are under way there.

        Raises:
            UserError: files are missing, or the model is not the one that the run recorded.
        """
        records = self.folder.metrics()
        self.measured = [measurement(record, self.recipe.evaluation) for record in records]
        recorded = recorded_hashes(self.folder)
        if len(log):
            logged_update(self.folder, log.first, log.read(log.first))
        under_way = plans_under_way(self.assembly.method, len(log), self.recipe.federation.rounds)
        best = unkept_best(self.folder, log)
        ends = {len(log)} if best is None else {len(log), best}
        if log.first or self.folder.snapshot_file.exists():
            self._load_snapshot(log, min(ends.union(under_way)))
        keep_best(self.folder, self.replica, best)
        for version in range(self.replica.version, len(log)):
            if self.assembly.method.cumulative and version + 1 not in ends:
                continue
            if version in under_way:
                deque(engine.exchange(under_way[version]), maxlen=0)
            with record_read(self.folder, version):
                self.worker.deliver(log.read(version))
            keep_best(self.folder, self.replica, best)
            if self.replica.version == max(recorded, default=0):
                check_recorded(self.folder, self.replica, recorded[self.replica.version])
        self._check_states(records)
        self.folder.rewrite_metrics(records)
        forget_predictions(self.folder, len(records))
        if len(records) < len(log):
            account = self.folder.account()
            if account["log"] != log.digest:
                raise UserError(
                    f"{self.folder.account_file}: this is not of the log's last round; "
                    "restore copies of both."
                )
            self._close_round(log, account)

    def _load_snapshot(self, log: Log, newest: int) -> None:
        """Begin from the snapshot, unless it is newer than what is needed and the log has that."""
        file = newest_snapshot(self.folder)
        if log.first == 0 and newest < snapshot_version(file) <= len(log):
            return
        load_snapshot(self.folder, self.replica, file)
        version = self.replica.version
        if version > len(log):
            raise UserError(f"{file}: the snapshot is ahead of the log; delete it.")
        if version <= log.first:
            raise UserError(f"{file}: this is an older snapshot; restore a copy of the newest.")
        self.worker.last = logged_update(self.folder, version - 1, log.read(version - 1))
        leave_out(self.folder, self.replica, log)

    def _check_states(self, records: Sequence[Mapping[str, Any]]) -> None:
        """See that the states of clients in this process are of their newest visits that count."""
        last, here = self.worker.last, self.assembly.data.clients
        if here and last is not None and "clients" in last.values:
            newest = {client: r["round"] for r in records for client in r["aggregated"]}
            self.folder.states().check(newest)

    def _round(self, log: Log, engine: Engine) -> None:
        """One round, committed by the log: before it nothing counts, after it nothing is lost."""
        number, last = self.replica.version, self.worker.last
        for callback in self.callbacks:
            callback.on_round_begin(number)

        def on_arrival(arrival: Arrival) -> None:
            for callback in self.callbacks:
                callback.on_visit_end(number, arrival)

        result = run_round(
            self.assembly.method,
            _Measured(engine, self.peaks),
            number,
            last,
            self.replica.model,
            on_arrival,
            self.quorum,
            self.samples,
            self.folder.path,
            self._observe,
            self.replica.exact,
            round_check(self.recipe, self.replica, self.assembly.data, self.folder, last),
            self._name,
            self.replica.moments,
        )
        payload = encode(result.update)
        result = replace(result, update=replace(result.update, tensors={}))  # they are in there
        account = {
            **account_of(result, len(payload)),
            **self.budget.spent(number + 1),
            "log": log.digest_after(payload),
            "arithmetic": self.arithmetic,
        }
        started = time.perf_counter()
        self.worker.deliver(payload)
        if not self.replica.is_finite:  # and so nobody's would be
            raise UserError(
                f"round {number}: the clients' mean makes weights that are not finite in "
                f"{self.recipe.model.dtype}; lower local.learning_rate or the server's rate (among "
                "the method's options), or set local.clip, and start a new run."
            )
        account["seconds"]["aggregate"] += time.perf_counter() - started
        account["peak_memory_by_part"] = {**UNMEASURED, **self.peaks.end()}
        self.folder.write_account(account)
        log.append(payload)
        self._close_round(log, account)

    def _close_round(self, log: Log, account: dict[str, Any]) -> None:
        """Evaluate if it is due, write the round's line, take a snapshot if that is due.

        The line has the model's hash where either is, so that a snapshot can be told from another
        run's.
        """
        version, rounds = self.replica.version, self.recipe.federation.rounds
        started = time.perf_counter()
        snapshot_due = version % self.recipe.federation.snapshot_every == 0
        due = version % self.recipe.evaluation.every == 0 or version == rounds
        metrics, peaks = {"loss": None}, {"evaluate": None, **account["peak_memory_by_part"]}
        if due:
            self.peaks.begin("evaluate")
            metrics |= self._evaluate()
            peaks |= self.peaks.end()
        now = time.perf_counter()
        account["seconds"] |= {"evaluate": now - started, "elapsed": now - self.counted}
        self.counted = now
        record = {
            **account,
            **metrics,
            "model_hash": self.replica.content_hash() if due or snapshot_due else None,
            "peak_memory_bytes": self.peaks.overall,
            "peak_memory_by_part": peaks,
        }
        line = self.folder.append_metrics(record)
        self.measured.append(measurement(line, self.recipe.evaluation))
        for callback in self.callbacks:
            callback.on_round_end(line)
        if due:
            keep_best(self.folder, self.replica, unkept_best(self.folder, log))
        if snapshot_due:
            take_snapshot(self.folder, self.replica, log)

    def _evaluate(self) -> dict[str, Any]:
        """The metrics of the model as it is now, its answers kept."""
        ours, recipe = self.assembly, self.recipe
        measured = evaluate(
            ours.model,
            ours.tokenizer,
            ours.data.test,
            recipe.evaluation,
            recipe.evaluated_together,
            self._observe,
        )
        kept = write_predictions(self.folder, self.replica.version, measured.predictions)
        return {**recorded(measured.metrics), **kept}

    def _notice(self, text: str) -> None:
        for callback in self.callbacks:
            callback.on_notice(text)

    def _observe(self, headway: Headway) -> None:
        for callback in self.callbacks:
            callback.on_headway(self.replica.version, headway)


@dataclass
class _Measured:
    """An engine whose clients' work counts as visits, and what comes after it as aggregation."""

    engine: Engine
    peaks: PeakMemory

    def exchange(
        self, plans: Mapping[int, Payload], seconds: float | None = None
    ) -> Iterator[Arrival]:
        self.peaks.begin("visit")
        yield from self.engine.exchange(plans, seconds)
        self.peaks.begin("aggregate")
