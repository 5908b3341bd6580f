"""A node's resident worker: keeps model, replica and data in memory from one order to the next.

A network engine may start a process for every message; the worker is what does not start anew.
What it needs to go on where it was when it is killed is on the node's disk.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.engines.node_drift import Drift
from fullfed.engines.node_limits import LimitError, Limits, OverdueError, RefusalError
from fullfed.engines.node_messages import (
    Answer,
    Frames,
    Order,
    named,
    short_line,
)
from fullfed.engines.node_state import NodeState
from fullfed.errors import MessageError, UserError
from fullfed.federation.client import SubmodelWorker, Worker
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Plan, Update, decode
from fullfed.federation.method import Method
from fullfed.federation.replica import Replica, UnfitUpdateError
from fullfed.files import private_files
from fullfed.headway import QUIET_SECONDS, Headway, NowAndThen, Observer
from fullfed.payloads import Payload

if TYPE_CHECKING:
    from fullfed.privacy.summing import Owner, SummingClients

_log = logging.getLogger(__name__)
_LOG_SHARE = 16  # times the replica's bytes that updates on disk may have before a snapshot
_UNSAID = "the node cannot take part; its operator finds the reason in the node's worker.log"


@dataclass(frozen=True)
class NodeTask:
    """A run's task, loaded on a node.

    Attributes:
        model: the base model; without weights where the node is to hold no replica.
        method: the run's.
        replica: of the model, at version 0; None where the node is to hold none.
        examples: the node's own.
        device: to train on.
        snapshot_every: rounds between two snapshots on the disk.
        base: of what updates change, the names of what is the base model's own.
        worker, drift: make these of the replica; a team's, where it is one's.
    """

    model: PreTrainedModel
    method: Method
    replica: Replica | None
    examples: Sequence[TokenizedExample]
    device: torch.device
    snapshot_every: int
    base: Collection[str] = ()
    worker: Callable[..., Worker] = Worker
    drift: Callable[..., Drift] = Drift

    def by_client(self) -> Mapping[int, Sequence[TokenizedExample]]:
        """The examples by client: the node is one client, whatever its number is in the run."""
        return defaultdict(lambda: self.examples)


# Checks a task's encoded settings and the bytes of its codec's scales, knowing whether the node is
# to hold a replica, and returns what loads the task. Both raise a RefusalError if the node does not
# allow the run or its model is not the run's, a UserError if anything else does not fit.
LoadTask = Callable[[bytes, bytes, bool], Callable[[], NodeTask]]


class ReplicaNodeClient:
    """A node's part in a run, by a replica that updates bring up to date.

    The replica goes on from where the state on disk says that it was.

    Raises:
        LimitError: that is too far from the base model.
        UserError: the state on disk was damaged.
    """

    def __init__(
        self,
        task: NodeTask,
        state: NodeState,
        limits: Limits,
        observer: Observer,
        summing: SummingClients | None = None,
    ) -> None:
        assert task.replica is not None
        replica = task.replica
        self._drift = task.drift(replica.parameters(), task.base, limits.most_drift)
        clients = task.by_client()
        self._worker = task.worker(replica, task.method, clients, state.states, observer, summing)
        self._state = state
        self._every = task.snapshot_every
        state.restore(self._worker)
        self._drift.check(replica.parameters())

    @property
    def version(self) -> int:
        """The model version that the node is at."""
        return self._worker.replica.version

    def follow(self, order: Order, version: int) -> None:
        """Go towards ``version`` with what the order brings; keep it on disk.

        Raises:
            MessageError: what the order brings is no use.
            RefusalError: an update does not fit, or leads too far from the base model. The replica
                may be half-way; the state on disk is what it was.
        """
        worker, state, replica = self._worker, self._state, self._worker.replica
        if order.snapshot and replica.version < version:
            state.receive_snapshot(worker, order.snapshot, order.last)
            self._drift.check(replica.parameters())
            state.take_snapshot(worker, order.last)
        for number, payload in enumerate(order.updates, start=order.first):
            if number < replica.version:
                continue
            if number > replica.version and not replica.method.cumulative:
                return
            self._deliver(payload)
            state.append(payload)
            long = state.log_bytes > _LOG_SHARE * replica.nbytes
            if replica.version % self._every == 0 or long:
                state.take_snapshot(worker, payload)

    def _deliver(self, payload: Payload) -> None:
        try:
            self._worker.deliver(payload)
        except UnfitUpdateError as error:
            raise RefusalError(str(error), str(error)) from error
        self._drift.check(self._worker.replica.parameters())

    def visit(self, order: Order) -> Arrival:
        """Carry out the order's plan, which is of the version that the node is at."""
        return self._worker.visit(order.plan, submodel=b"")


class SubmodelNodeClient:
    """The same for a node without a replica: it trains on the submodel that every order brings.

    Raises:
        MessageError: the static weights are malformed.
    """

    def __init__(
        self, task: NodeTask, state: NodeState, static_weights: Payload, observer: Observer
    ) -> None:
        self._client = SubmodelWorker(
            task.model,
            task.method,
            static_weights,
            task.by_client(),
            state.states,
            task.device,
            observer,
        )
        self._states = state.states
        self.version = 0

    def follow(self, order: Order, version: int) -> None:
        """It sees no updates, so the order says which of its visits count."""
        for round in range(order.aggregated + 1, version):
            self._states.settle(round, [])
        self.version = version

    def visit(self, order: Order) -> Arrival:
        if not order.submodel:
            raise MessageError("the order brings no submodel for a node without a replica")
        return self._client.visit(order.plan, order.submodel)


NodeClient = ReplicaNodeClient | SubmodelNodeClient


@dataclass
class _Joined:
    """A run that the worker takes part in.

    Attributes:
        run: names it.
        state: on the node's disk.
        client: the node's part.
        answered: the encoded plan last answered, ...
        answer: ... and the answer.
    """

    run: str
    state: NodeState
    client: NodeClient
    answered: Payload = b""
    answer: Answer | None = None


class NodeWorker:
    """Answers orders, in a process's main thread.

    Args:
        folder: for the state on disk.
        load: see LoadTask.
        limits: what a server may ask.
        owner: what the node has that nobody else has; None where it has nothing.
        out_of_step: is set where this process failed amid what others do with it: it has to end.
    """

    def __init__(
        self,
        folder: Path,
        load: LoadTask,
        limits: Limits | None = None,
        owner: Owner | None = None,
        out_of_step: threading.Event | None = None,
    ) -> None:
        self._out_of_step = out_of_step or threading.Event()
        self._folder, self._load, self._limits = folder, load, limits or Limits()
        self._owner = owner
        self._joined: _Joined | None = None
        self._observer = NowAndThen(_log_headway, QUIET_SECONDS)

    def refuse(self, nbytes: int) -> Frames | None:
        """The answer to an order of so many bytes, if it is too long; none of it has been read."""
        try:
            self._limits.check_size(nbytes)
        except LimitError as error:
            _log.error("%s", error)
            return Answer(self._version, failure=error.public).frames()
        return None

    def handle(self, frames: Frames) -> Frames:
        """Answer one order. Whatever goes wrong, the answer quotes no data of the node's."""
        too_long = self.refuse(sum(map(len, frames.values())))
        if too_long is not None:
            return too_long
        version = self._version
        try:
            with private_files(), self._limits.in_time():
                return self._answer(Order.of(frames)).frames()
        except MessageError as error:
            said = short_line(str(error))
            _log.error("the server's order was refused: %s", said)
            return Answer(self._version, failure=f"the order was refused: {said}").frames()
        except RefusalError as error:
            _log.error("%s", short_line(str(error)))
            return Answer(version, failure=short_line(error.public)).frames()
        except UserError as error:
            _log.error("%s", error)
            failure = _UNSAID
        except OverdueError:
            late = LimitError("most_seconds", f"the order took {self._limits.most_seconds:g} s")
            _log.error("%s", late)
            failure = late.public
        except Exception:
            # The last resort at the edge of the process: text of any exception may quote data.
            _log.exception("the worker failed; worker.log says how")
            failure = _UNSAID
        self._out_of_step.set()
        self.leave()  # what is in memory may be half-way
        return Answer(version, failure=failure).frames()

    def leave(self) -> None:
        """Forget the run in memory; its state stays on disk."""
        if self._joined is not None:
            self._joined.state.close()
            self._joined = None

    @property
    def _version(self) -> int:
        return -1 if self._joined is None else self._joined.client.version

    def _answer(self, order: Order) -> Answer:
        plan = decode(order.plan, Plan)
        joined = self._join(order)
        if joined is None:
            return Answer(-1)  # the node does not know the run: the server is to send the settings
        if joined.answer is not None and joined.answered == order.plan:
            return joined.answer
        if not joined.state.belongs_to(plan.client):
            raise MessageError(f"the node is not client {plan.client} of this run")
        try:
            joined.client.follow(order, plan.round)
        except RefusalError:
            self.leave()  # the replica in memory is where it must not stay
            raise
        version = joined.client.version
        if version < plan.round:
            return Answer(version)
        if version > plan.round:
            raise MessageError(f"the plan is for version {plan.round}, the node has {version}")
        _log.info("round %d as client %d", plan.round, plan.client)
        self._observer.said()
        arrival = joined.client.visit(order)
        seconds = arrival.train_seconds, arrival.encode_seconds
        answer = Answer(version, arrival.payload or b"", arrival.failure, *seconds)
        joined.answered, joined.answer = order.plan, answer
        return answer

    def _join(self, order: Order) -> _Joined | None:
        """The order's run, loaded if it is not yet; None if the node must be told more of it."""
        joined = self._joined
        if joined is not None and joined.run == order.run:
            if not joined.state.follow_rollbacks(order.rollbacks):
                return joined
            self.leave()
        state = NodeState(self._folder, order.run)
        settings, scales = bytes(order.settings), bytes(order.scales)
        static_weights, known = order.static_weights, state.begun
        if known:
            try:
                state.follow_rollbacks(order.rollbacks)
                settings, scales, static_weights = state.read()
            except UserError as error:
                _begin_again(state, error)
                return None
        elif not settings or (order.submodel and not static_weights):
            return None
        load = self._load(settings, scales, not static_weights)
        self.leave()  # frees the other run's model first
        task = load()
        if not known:  # nothing is written, and so nothing displaced, for a run that was refused
            if static_weights:
                decode(static_weights, Update)
            state.create(settings, scales, static_weights)
            state.follow_rollbacks(order.rollbacks)
        client = self._client(task, state, static_weights, order.run)
        state.use(self._limits.most_runs)
        self._joined = None if client is None else _Joined(order.run, state, client)
        return self._joined

    def _client(
        self, task: NodeTask, state: NodeState, static_weights: Payload, run: str
    ) -> NodeClient | None:
        """The node's part in a run; None if its state on disk was damaged, which is gone then."""
        name = named(run, state.read()[0])
        owner_of = self._owner_of(task.method, state)
        if owner_of is not None:
            task = replace(task, method=task.method.owned(name, owner_of))
        if static_weights:
            return SubmodelNodeClient(task, state, static_weights, self._observer)
        try:
            summing = _summing(task.method, owner_of, name)
            return ReplicaNodeClient(task, state, self._limits, self._observer, summing)
        except RefusalError:
            raise
        except UserError as error:
            _begin_again(state, error)
            return None

    def _owner_of(self, method: Method, state: NodeState) -> Callable[[int], Owner] | None:
        """What the node has in a run that nobody else has, whatever client it is there; None where
        the run's method asks for nothing."""
        if method.sums is None and not method.protects_records:
            return None
        if self._owner is None:
            raise RefusalError(
                "the node has no secret for sums and noise; join by `fullfed join`.",
                "the node takes no part in sums, and adds no noise",
            )
        owner = replace(self._owner, given=state.given, ledger=state.ledger)
        return lambda client: owner


def _summing(
    method: Method, owner_of: Callable[[int], Owner] | None, run: str
) -> SummingClients | None:
    """The node's part in a run's sums; None where its server sees every report."""
    if method.sums is None or owner_of is None:
        return None
    from fullfed.privacy.summing import SummingClients

    return SummingClients(method.sums, run, owner_of)


def _log_headway(headway: Headway, text: str) -> None:
    _log.info("%s", text)


def _begin_again(state: NodeState, error: UserError) -> None:
    _log.warning("the server is asked for everything again: %s", error)
    state.remove()
