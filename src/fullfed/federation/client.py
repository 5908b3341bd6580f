"""The client's side: carries out plans, and keeps what clients keep between visits.

A client's state (residuals of its codec, moments of its optimizer) never leaves it. It is stored
under a name and the round that made it. A visit reads the newest state of an earlier round, so one
that is repeated after a crash begins where it began before; and what a visit leaves counts only if
the round's update has its report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Update, decode, encode
from fullfed.federation.method import NOTHING, Method, VisitError
from fullfed.federation.replica import Replica
from fullfed.federation.server import Arrival
from fullfed.files import write_atomically

_CPU = torch.device("cpu")


class Worker:
    """Carries out plans for clients whose data it holds; the data never leave it.

    Args:
        replica: brought up to date by ``deliver``.
        method: how to train and report.
        examples: each client's own tokenised samples.
        states: where clients keep their state between visits.

    Attributes:
        last: the newest update the replica has, None at the base model.
    """

    def __init__(
        self,
        replica: Replica,
        method: Method,
        examples: Mapping[int, Sequence[TokenizedExample]],
        states: States | None = None,
    ) -> None:
        self.replica = replica
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
            order, self._method, self.replica.model, self._examples, self.last, self._states
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
        return SubmodelWorker(model, self._method, sent, self._examples, self._states, model.device)


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
    ) -> None:
        self._like = like
        self._method = method
        self._static_weights = decode(static_weights, Update)
        self.static_bytes = len(static_weights)
        self._examples = examples
        self._states = states or StatesInMemory()
        self._device = device

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
        return _carry_out(order, self._method, model, self._examples, None, self._states)


def _carry_out(
    plan: Plan,
    method: Method,
    model: PreTrainedModel,
    examples: Mapping[int, Sequence[TokenizedExample]],
    last: Update | None,
    states: States,
) -> Arrival:
    try:
        name = method.client_state(plan)
    except MessageError as error:
        return Arrival(plan.client, None, failure=str(error))
    state = states.load(plan.client, name, plan.round) if name else NOTHING
    try:
        visit = method.train(model, plan, examples[plan.client], last, state)
    except VisitError as error:
        return Arrival(plan.client, None, failure=str(error))
    if name:
        states.save(plan.client, name, plan.round, visit.state)
    return Arrival(
        plan.client,
        encode(visit.report),
        train_seconds=visit.train_seconds,
        encode_seconds=visit.encode_seconds,
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
    """In a folder: a folder for each client, a file for each name and round.

    Args:
        folder: made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, client: int, name: str, round: int) -> Mapping[str, Tensor]:
        rounds = [r for r in self._rounds(client, name) if r < round]
        if not rounds:
            return NOTHING
        path = self._path(client, name, max(rounds))
        try:
            return safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: the client's state cannot be read; restore a copy of it."
            ) from error

    def save(self, client: int, name: str, round: int, state: Mapping[str, Tensor]) -> None:
        path = self._path(client, name, round)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        write_atomically(path, safetensors.torch.save(tensors))
        for old in sorted(r for r in self._rounds(client, name) if r < round)[:-1]:
            self._path(client, name, old).unlink()

    def forget(self, first: int) -> None:
        """``first`` and later rounds are undone: forget the states of their visits. A client's last
        two are kept, so one that went further has none from before, and begins anew."""
        for path in self._folder.glob("*/*.safetensors"):
            if int(path.name.split(".")[-2]) >= first:
                path.unlink()

    def settle(self, round: int, clients: Collection[int]) -> None:
        for path in self._folder.glob(f"*/*.{round}.safetensors"):
            if int(path.parent.name) not in clients:
                path.unlink(missing_ok=True)

    def _rounds(self, client: int, name: str) -> Iterator[int]:
        for path in (self._folder / str(client)).glob(f"{name}.*.safetensors"):
            yield int(path.name.split(".")[-2])

    def _path(self, client: int, name: str, round: int) -> Path:
        return self._folder / str(client) / f"{name}.{round}.safetensors"
