"""The client's side: carries out plans, and keeps what clients keep between visits.

A client's state (residuals of its codec, moments of its optimizer) never leaves it. It is stored
under a name and the round that made it. A visit reads the newest state of an earlier round, so one
that is repeated after a crash begins where it began before; and what a visit leaves counts only if
the round's update has its report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.errors import MessageError, UserError
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Plan, Update, decode, encode
from fullfed.federation.method import NOTHING, Method, VisitError
from fullfed.federation.replica import Replica
from fullfed.files import read_sealed, write_atomically, write_sealed
from fullfed.headway import Observer, unobserved

_CPU = torch.device("cpu")


class Worker:
    """Carries out plans for clients whose data it holds; the data never leave it.

    Args:
        replica: brought up to date by ``deliver``.
        method: how to train and report.
        examples: each client's own tokenised samples.
        states: where clients keep their state between visits.
        observer: is told how visits get on.

    Attributes:
        last: the newest update the replica has, None at the base model.
    """

    def __init__(
        self,
        replica: Replica,
        method: Method,
        examples: Mapping[int, Sequence[TokenizedExample]],
        states: States | None = None,
        observer: Observer = unobserved,
    ) -> None:
        self.replica = replica
        self.observer = observer
        self._method = method
        self._examples = examples
        self._states = states or StatesInMemory()
        self.last: Update | None = None

    def deliver(self, update: bytes) -> None:
        """Apply one encoded update to the replica."""
        decoded = decode(update, Update)
        self.replica.apply(decoded)
        self.last = decoded
        if isinstance(clients := decoded.values.get("clients"), list):
            self._states.settle(decoded.round, [c for c in clients if isinstance(c, int)])

    def visit(self, plan: bytes, submodel: bytes | None = None) -> Arrival:
        """Carry out one encoded plan; a failure comes back as an arrival without payload.

        Args:
            submodel: what ``submodel`` makes for the plan, and is made here if it is not given.
                Unless it is empty, training is on what was sent, as at a client without a replica.
        """
        order = decode(plan, Plan)
        try:
            submodel = self.submodel(plan) if submodel is None else submodel
        except MessageError as error:
            return Arrival(order.client, None, failure=str(error))
        if submodel:
            return self._without_replica.visit(plan, submodel)
        return _carry_out(
            order,
            self._method,
            self.replica.model,
            self._examples,
            self.last,
            self._states,
            self.replica.exact,
            self.observer,
        )

    def submodel(self, plan: bytes) -> bytes:
        """What a client without a replica is sent with a plan; empty where clients hold replicas.

        Raises:
            MessageError: there can be no such plan.
        """
        submodels = self._method.submodels
        if submodels is None:
            return b""
        return encode(submodels.submodel(self.replica.model, decode(plan, Plan)))

    def static_weights(self) -> bytes:
        """What a client without a replica is sent once."""
        assert self._method.submodels is not None  # nobody asks for them otherwise
        return encode(self._method.submodels.static_weights(self.replica.model))

    @property
    def static_bytes(self) -> int:
        """How long ``static_weights`` are."""
        return self._without_replica.static_bytes

    def snapshot(self) -> tuple[bytes, bytes]:
        """The replica whole, and the update that led to it without its tensors."""
        return self.replica.snapshot(), self._last_values()

    def snapshot_bytes(self) -> int:
        """How long the two parts of ``snapshot`` are together."""
        return self.replica.snapshot_bytes + len(self._last_values())

    def _last_values(self) -> bytes:
        assert self.last is not None  # nobody asks for a snapshot of the base model
        return encode(replace(self.last, tensors={}))

    @cached_property
    def _without_replica(self) -> SubmodelWorker:
        model, sent = self.replica.model, self.static_weights()
        return SubmodelWorker(
            model,
            self._method,
            sent,
            self._examples,
            self._states,
            model.device,
            self.observer,
        )


class SubmodelWorker:
    """A client's side without a replica: it trains on what it is sent with each plan.

    Args:
        like: a model of the federation's class and configuration; its weights are not used, and
            it may have none (training.quantised.blank).
        method: how to train and report.
        static_weights: encoded; see ``Submodels``.
        examples: each client's own tokenised samples.
        states: where clients keep their state between visits.
        device: to train on.
        observer: is told how visits get on.

    Attributes:
        static_bytes: how long the static weights were.
    """

    def __init__(
        self,
        like: PreTrainedModel,
        method: Method,
        static_weights: bytes,
        examples: Mapping[int, Sequence[TokenizedExample]],
        states: States | None = None,
        device: torch.device = _CPU,
        observer: Observer = unobserved,
    ) -> None:
        self._like = like
        self._method = method
        self._static_weights = decode(static_weights, Update)
        self.static_bytes = len(static_weights)
        self._examples = examples
        self._states = states or StatesInMemory()
        self._device = device
        self._observer = observer

    def visit(self, plan: bytes, submodel: bytes) -> Arrival:
        """Carry out one encoded plan on the encoded submodel that came with it."""
        order, received = decode(plan, Plan), decode(submodel, Update)
        del submodel  # as large as what is held from here on, and perhaps nobody else's
        try:
            if self._method.submodels is None:
                raise MessageError("the method has no submodels")
            model = self._method.submodels.assemble(
                self._like, self._static_weights, received, order, self._device
            )
        except MessageError as error:
            return Arrival(order.client, None, failure=str(error))
        del received
        return _carry_out(
            order,
            self._method,
            model,
            self._examples,
            None,
            self._states,
            observer=self._observer,
        )


def _carry_out(
    plan: Plan,
    method: Method,
    model: PreTrainedModel,
    examples: Mapping[int, Sequence[TokenizedExample]],
    last: Update | None,
    states: States,
    exact: Mapping[str, Tensor] = NOTHING,
    observer: Observer = unobserved,
) -> Arrival:
    try:
        name = method.client_state(plan)
    except MessageError as error:
        return Arrival(plan.client, None, failure=str(error))
    state = states.load(plan.client, name, plan.round) if name else NOTHING
    try:
        own = examples[plan.client]
        visit = method.train(model, plan, own, last, state, exact, observer)
    except VisitError as error:
        return Arrival(plan.client, None, failure=str(error))
    if name:
        states.save(plan.client, name, plan.round, visit.state)
    return Arrival(
        plan.client,
        encode(visit.report),
        train_seconds=visit.train_seconds,
        encode_seconds=visit.encode_seconds,
        metrics=visit.metrics,
    )


class States(Protocol):
    def load(self, client: int, name: str, round: int) -> Mapping[str, Tensor]:
        """The newest state from before ``round``; empty if there is none."""

    def save(self, client: int, name: str, round: int, state: Mapping[str, Tensor]) -> None:
        """Keep the state after a visit in ``round``, and forget those no visit can need again."""

    def settle(self, round: int, clients: Collection[int]) -> None:
        """``round`` is over: forget the states of visits whose reports are not in its update."""


class StatesInMemory:
    """For as long as this process lives."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, str], dict[int, Mapping[str, Tensor]]] = {}

    def load(self, client: int, name: str, round: int) -> Mapping[str, Tensor]:
        rounds = self._states.get((client, name), {})
        newest = max((r for r in rounds if r < round), default=None)
        return NOTHING if newest is None else rounds[newest]

    def save(self, client: int, name: str, round: int, state: Mapping[str, Tensor]) -> None:
        rounds = self._states.setdefault((client, name), {})
        rounds[round] = {name: tensor.clone() for name, tensor in state.items()}
        for old in sorted(r for r in rounds if r < round)[:-1]:
            del rounds[old]

    def settle(self, round: int, clients: Collection[int]) -> None:
        for (client, _), rounds in self._states.items():
            if client not in clients:
                rounds.pop(round, None)


class StatesOnDisk:
    """In a folder: a folder for each client, with a file for each name and round and an index.

    The index is sealed and has the SHA-256 of every state that counts, so that a state which was
    changed, deleted or put in the place of another is found. It is written after the state: one
    that a crash kept out of it is of a visit that is repeated, or does not count.

    Args:
        folder: made when there is something to keep.
        run: names the run whose states these are.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._folder = folder
        self._run = run

    def load(self, client: int, name: str, round: int) -> Mapping[str, Tensor]:
        rounds = self._index(client).get(name, {})
        newest = max((r for r in rounds if r < round), default=None)
        if newest is None:
            return NOTHING
        path = self._path(client, name, newest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unreadable(path) from error
        if hashlib.sha256(data).hexdigest() != rounds[newest]:
            raise _unreadable(path)
        return safetensors.torch.load(data)

    def save(self, client: int, name: str, round: int, state: Mapping[str, Tensor]) -> None:
        index = self._index(client)
        if not index:  # so that a state without an index has lost it
            self._write_index(client, index)
        data = safetensors.torch.save({n: t.cpu().contiguous() for n, t in state.items()})
        write_atomically(self._path(client, name, round), data)
        rounds = index.setdefault(name, {})
        for old in sorted(r for r in rounds if r < round)[:-1]:
            del rounds[old]
        rounds[round] = hashlib.sha256(data).hexdigest()
        self._write_index(client, index)
        counting = {self._path(client, name, r) for r in rounds}
        for path in self._index_file(client).parent.glob(f"{name}.*.safetensors"):
            if path not in counting:
                path.unlink()

    def forget(self, first: int) -> None:
        """``first`` and later rounds are undone: forget the states of their visits. A client's last
        two are kept, so one that went further has none from before, and begins anew."""
        for file in self._folder.glob("*/index.json"):
            client = int(file.parent.name)
            states = {
                name: {round: sha for round, sha in rounds.items() if round < first}
                for name, rounds in self._index(client).items()
            }
            self._write_index(client, states, first)
            for path in file.parent.glob("*.safetensors"):
                if int(path.name.split(".")[-2]) >= first:
                    path.unlink()

    @property
    def has_forgotten(self) -> bool:
        """Whether states that are here were looked through for those of undone rounds."""
        clients = (int(file.parent.name) for file in self._folder.glob("*/index.json"))
        return any(self._undone(client) >= 0 for client in clients)

    def settle(self, round: int, clients: Collection[int]) -> None:
        for path in self._folder.glob(f"*/*.{round}.safetensors"):
            if (client := int(path.parent.name)) not in clients:
                index = self._index(client)
                for rounds in index.values():
                    rounds.pop(round, None)
                self._write_index(client, index)
                path.unlink(missing_ok=True)

    def check(self, newest: Mapping[int, int]) -> None:
        """See that the state is there which each client's ``newest`` counted visit left, unless
        the visit was before a round that was undone.

        Raises:
            UserError: it is not.
        """
        for client, round in newest.items():
            there = any(round in rounds for rounds in self._index(client).values())
            if not there and round >= self._undone(client):
                raise UserError(
                    f"{self._index_file(client)}: what the client kept of round {round} is missing "
                    "here; restore a copy of the folder."
                )

    def _index(self, client: int) -> dict[str, dict[int, str]]:
        """The SHA-256 of each state that counts, by name and round."""
        states = self._read_index(client)["states"]
        return {name: {int(r): sha for r, sha in own.items()} for name, own in states.items()}

    def _undone(self, client: int) -> int:
        """States from before this round may be gone, because rounds from it on were undone; -1 if
        none were."""
        return int(self._read_index(client)["undone"])

    def _read_index(self, client: int) -> dict[str, Any]:
        path = self._index_file(client)
        if not path.exists() and not any(path.parent.glob("*.safetensors")):
            return {"states": {}, "undone": -1}
        absent = f"{path}: the file is missing; restore a copy of the folder."
        return read_sealed(path, absent, self._owner(client))

    def _write_index(
        self, client: int, index: Mapping[str, Mapping[int, str]], undone: int | None = None
    ) -> None:
        path = self._index_file(client)
        path.parent.mkdir(parents=True, exist_ok=True)
        states = {name: {str(r): sha for r, sha in own.items()} for name, own in index.items()}
        undone = self._undone(client) if undone is None else undone
        write_sealed(path, {"states": states, "undone": undone}, self._owner(client))

    def _owner(self, client: int) -> str:
        return f"{self._run} {client}"

    def _index_file(self, client: int) -> Path:
        return self._folder / str(client) / "index.json"

    def _path(self, client: int, name: str, round: int) -> Path:
        return self._folder / str(client) / f"{name}.{round}.safetensors"


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path}: this is not the state that the client kept; restore a copy of it.")
