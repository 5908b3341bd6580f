"""The client's side: one replica, and the data of the clients it works for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from transformers import PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import MessageError, Plan, Update, decode, encode
from fullfed.federation.method import NOTHING, Method, VisitError
from fullfed.federation.replica import Replica
from fullfed.federation.states import States, StatesInMemory

_CPU = torch.device("cpu")


class Worker:
    """Carries out plans for clients whose data it holds; the data never leave it.

    Args:
        replica: brought up to date by ``deliver``.
        method: how to train and report.
        examples: each client's own tokenised samples.
        states: where clients keep what they keep between visits.

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
        if isinstance(merged := decoded.values.get("merged"), list):
            self._states.settle(decoded.round, [c for c in merged if isinstance(c, int)])

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
            return self._guest.visit(plan, submodel)
        return _carry_out(
            order, self._method, self.replica.model, self._examples, self.last, self._states
        )

    def submodel(self, plan: bytes) -> bytes:
        """What a client without a replica is sent with a plan; empty where clients hold replicas.

        Raises:
            MessageError: there can be no such plan.
        """
        handout = self._method.handout(self.replica.model, decode(plan, Plan))
        return b"" if handout is None else encode(handout)

    def static_weights(self) -> bytes:
        """What a client without a replica is sent once."""
        return encode(self._method.equipment(self.replica.model))

    @property
    def static_bytes(self) -> int:
        """How long ``static_weights`` are."""
        return self._guest.equipment_bytes

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
    def _guest(self) -> Guest:
        model = self.replica.model
        sent = self.static_weights()
        return Guest(model, self._method, sent, self._examples, self._states, model.device)


class Guest:
    """A client's side without a replica: it trains on what it is sent with each plan.

    Args:
        like: a model of the federation's class and configuration; its weights are not used, and
            it may have none (training.assembled.blank).
        method: how to train and report.
        equipment: encoded; see ``Method.equipment``.
        examples: each client's own tokenised samples.
        states: where clients keep what they keep between visits.
        device: to train on.

    Attributes:
        equipment_bytes: how long the equipment was.
    """

    def __init__(
        self,
        like: PreTrainedModel,
        method: Method,
        equipment: bytes,
        examples: Mapping[int, Sequence[TokenizedExample]],
        states: States | None = None,
        device: torch.device = _CPU,
    ) -> None:
        self._like = like
        self._method = method
        self._equipment = decode(equipment, Update)
        self.equipment_bytes = len(equipment)
        self._examples = examples
        self._states = states or StatesInMemory()
        self._device = device

    def visit(self, plan: bytes, handout: bytes) -> Arrival:
        """Carry out one encoded plan on the encoded handout that came with it."""
        order, received = decode(plan, Plan), decode(handout, Update)
        del handout  # as large as what is held from here on, and perhaps nobody else's
        try:
            model = self._method.assembled(
                self._like, self._equipment, received, order, self._device
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
    name = method.keeps(plan)
    kept = states.load(plan.client, name, plan.round) if name else NOTHING
    try:
        visit = method.train(model, plan, examples[plan.client], last, kept)
    except VisitError as error:
        return Arrival(plan.client, None, failure=str(error))
    if name:
        states.save(plan.client, name, plan.round, visit.kept)
    return Arrival(
        plan.client,
        encode(visit.report),
        train_seconds=visit.train_seconds,
        encode_seconds=visit.encode_seconds,
    )
