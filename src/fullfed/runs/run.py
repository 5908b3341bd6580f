"""Carrying out a recipe, from the first round or from wherever a crash left it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from fullfed.config import Recipe
from fullfed.engines.simulation import Simulation
from fullfed.errors import UserError
from fullfed.evaluation.evaluate import evaluate
from fullfed.federation.log import Log
from fullfed.federation.messages import Update, decode, encode
from fullfed.federation.rounds import Engine, RoundResult, run_round
from fullfed.federation.states import StatesOnDisk
from fullfed.federation.traffic import Traffic
from fullfed.federation.worker import Worker
from fullfed.files import write_json
from fullfed.runs.assembly import Assembly, assemble, make_replica
from fullfed.runs.callbacks import Callback, Callbacks
from fullfed.runs.environment import peak_memory_bytes
from fullfed.runs.folder import RunFolder
from fullfed.runs.summary import summarize


def start(recipe: Recipe, path: Path, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Carry out a recipe into a new folder; return the summary.

    Raises:
        UserError: bad input, or a round in which no client could work.
    """
    assembly = assemble(recipe)
    folder = RunFolder(path)
    folder.create(assembly.recipe)
    return carry_out(folder, assembly, callbacks)


def resume(path: Path, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Carry a run on from where it stopped; return the summary.

    Raises:
        UserError: there is no run here, or it is damaged.
    """
    folder = RunFolder(path)
    return carry_out(folder, assemble(folder.recipe()), callbacks)


class Connect(Protocol):
    """Makes the engine of a run."""

    def __call__(self, recipe: Recipe, worker: Worker, log: Log, traffic: Traffic) -> Engine:
        """
        Args:
            worker: the server's replica, with the data of the clients in this process.
            log: what was done so far.
            traffic: knows what each client holds.
        """


def simulate(recipe: Recipe, worker: Worker, log: Log, traffic: Traffic) -> Engine:
    """Every client in this process."""
    return Simulation(worker, recipe.simulation.failures, recipe.federation.seed, traffic)


def carry_out(
    folder: RunFolder,
    assembly: Assembly,
    callbacks: Sequence[Callback] = (),
    connect: Connect = simulate,
    quorum: float = 0.0,
) -> dict[str, Any]:
    """Carry a run on from wherever its folder says it is to its end; return the summary.

    Args:
        callbacks: are told how the run gets on.
        connect: makes the engine.
        quorum: the share of a cohort without whose reports the run stops.

    Raises:
        UserError: the folder is damaged, or a round in which too few clients could work.
    """
    return _Run(folder, assembly, Callbacks(callbacks), connect, quorum).carry_out()


class _Run:
    """The server's side of one run."""

    def __init__(
        self,
        folder: RunFolder,
        assembly: Assembly,
        callbacks: Callbacks,
        connect: Connect,
        quorum: float,
    ) -> None:
        self._folder = folder
        self._assembly = assembly
        self._recipe = assembly.recipe
        self._callbacks = callbacks
        self._connect = connect
        self._quorum = quorum
        self._replica = make_replica(assembly.recipe, assembly.model, assembly.method)
        clients = {n: client.examples for n, client in enumerate(assembly.data.clients)}
        self._worker = Worker(
            self._replica, assembly.method, clients, StatesOnDisk(folder.states_folder)
        )

    def carry_out(self) -> dict[str, Any]:
        with Log(self._folder.log_file) as log:
            self._folder.clear_partial()
            base = self._evaluate_base()
            self._callbacks.on_run_begin(self._assembly, len(log))
            self._recover(log)
            cumulative = self._assembly.method.cumulative
            traffic = Traffic(log, self._worker.snapshot_bytes, cumulative)
            traffic.restore(self._folder.metrics())
            engine = self._connect(self._recipe, self._worker, log, traffic)
            while self._replica.version < self._recipe.federation.rounds:
                self._round(log, engine)
        summary = summarize(
            self._recipe,
            parameters=sum(p.numel() for p in self._replica.model.parameters()),
            model_hash=self._replica.content_hash(),
            base=base,
            records=self._folder.metrics(),
        )
        write_json(self._folder.summary_file, summary)
        self._callbacks.on_run_end(summary)
        return summary

    def _evaluate_base(self) -> dict[str, Any]:
        """What is known of the base model, measured unless it was before the run stopped."""
        hashes = {
            "model_hash": self._replica.content_hash(),
            "data_hash": self._assembly.data.content_hash(),
        }
        if not self._folder.base_file.exists():
            started = time.perf_counter()
            metrics = self._evaluate()
            seconds = time.perf_counter() - started
            write_json(
                self._folder.base_file, {**hashes, **metrics, "seconds": {"evaluate": seconds}}
            )
        base = self._folder.base()
        if base["data_hash"] != hashes["data_hash"]:
            raise UserError(
                f"{self._recipe.data.train}: training or test data are not those the run began "
                "with; put those back."
            )
        if base["model_hash"] != hashes["model_hash"]:
            raise UserError(
                f"{self._recipe.model.path}: this is not the base model the run began with; "
                "put that one back."
            )
        return base

    def _recover(self, log: Log) -> None:
        """Bring replica, accounts and metrics to where the log says the run is."""
        if self._folder.snapshot_file.exists():
            self._replica.load_snapshot(self._folder.snapshot_file)
        if self._replica.version > len(log):
            raise UserError(
                f"{self._folder.snapshot_file}: the snapshot is ahead of the log; delete it."
            )
        if self._replica.version > 0:
            self._worker.last = decode(log.read(self._replica.version - 1), Update)
        missed = range(self._replica.version, len(log))
        for version in missed[-1:] if self._assembly.method.cumulative else missed:
            self._worker.deliver(log.read(version))
        records = [r for r in self._folder.metrics() if r["round"] < len(log)]
        self._folder.rewrite_metrics(records)
        if len(records) < len(log):
            account = self._folder.account()
            if len(records) + 1 < len(log) or account["round"] + 1 != len(log):
                raise UserError(
                    f"{self._folder.metrics_file}: rounds of the log are missing here; "
                    "restore a copy of it."
                )
            self._close_round(account)

    def _round(self, log: Log, engine: Engine) -> None:
        """One round, committed by the log: before it nothing counts, after it nothing is lost."""
        number = self._replica.version
        result = run_round(
            self._assembly.method,
            engine,
            number,
            self._worker.last,
            on_arrival=lambda arrival: self._callbacks.on_visit_end(number, arrival),
            quorum=self._quorum,
        )
        payload = encode(result.update)
        self._folder.write_account(account_of(result, len(payload)))
        log.append(payload)
        started = time.perf_counter()
        self._worker.deliver(payload)
        account = self._folder.account()
        account["seconds"]["aggregate"] += time.perf_counter() - started
        self._close_round(account)

    def _close_round(self, account: dict[str, Any]) -> None:
        """Evaluate if it is due, write the round's line, take a snapshot if that is due."""
        version, rounds = self._replica.version, self._recipe.federation.rounds
        started = time.perf_counter()
        due = version % self._recipe.evaluation.every == 0 or version == rounds
        metrics = {"loss": None, **(self._evaluate() if due else {})}
        account["seconds"]["evaluate"] = time.perf_counter() - started
        record = {
            **account,
            **metrics,
            "model_hash": self._replica.content_hash() if due else None,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        self._folder.append_metrics(record)
        self._callbacks.on_round_end(record)
        if version % self._recipe.federation.snapshot_every == 0:
            self._replica.save_snapshot(self._folder.snapshot_file)

    def _evaluate(self) -> dict[str, float]:
        table = self._recipe.evaluation
        return evaluate(
            self._assembly.model,
            self._assembly.tokenizer,
            self._assembly.data.test,
            table.metrics,
            table.max_new_tokens,
            table.batch_size,
            table.generation_samples,
        )


def account_of(result: RoundResult, update_bytes: int) -> dict[str, Any]:
    """A round's line of metrics.jsonl, but for what is measured on the updated model."""
    values = result.update.values
    return {
        "round": result.update.round,
        "cohort": list(result.down),
        "merged": list(result.merged),
        "refused": [{"client": c, "reason": reason} for c, reason in result.refused],
        "train_loss": result.loss,
        "step": {name: v for name, v in values.items() if isinstance(v, float)},
        "bytes": {
            "up": sum(result.up.values()),
            "down": sum(result.down.values()),
            "update": update_bytes,
            "up_by_client": {str(client): n for client, n in result.up.items()},
            "down_by_client": {str(client): n for client, n in result.down.items()},
        },
        "seconds": {
            "train": result.train_seconds,
            "encode": result.encode_seconds,
            "aggregate": result.aggregate_seconds,
        },
    }
