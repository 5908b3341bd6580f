"""The client's side: carries out plans, on a replica or on what is sent with each plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.errors import MessageError
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Plan, Report, Update, decode, encode
from fullfed.federation.method import NOTHING, Method, VisitError
from fullfed.federation.replica import Replica
from fullfed.federation.states import States, StatesInMemory
from fullfed.headway import Observer, unobserved
from fullfed.payloads import Payload

if TYPE_CHECKING:
    from fullfed.privacy.summing import SummingClients

_CPU = torch.device("cpu")


class Worker:
    """Carries out plans for clients whose data it holds; the data never leave it.

    Args:
        replica: brought up to date by ``deliver``.
        method: how to train and report.
        examples: each client's own tokenised samples.
        states: where clients keep their state between visits.
        observer: is told how visits get on.
        summing: the clients' part in sums; None where the server sees their reports.

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
        summing: SummingClients | None = None,
    ) -> None:
        self.replica = replica
        self._summing = summing
        self._hashed: tuple[int, str] | None = None  # the version that was hashed last
        self.observer = observer
        self._method = method
        self._examples = examples
        self._states = states or StatesInMemory()
        self.last: Update | None = None

    def deliver(self, update: Payload) -> None:
        """Apply one encoded update to the replica."""
        decoded = decode(update, Update)
        self.replica.apply(decoded)
        self.last = decoded
        if isinstance(clients := decoded.values.get("clients"), list):
            self._states.settle(decoded.round, [c for c in clients if isinstance(c, int)])

    def visit(self, plan: Payload, submodel: Payload | None = None) -> Arrival:
        """Carry out one encoded plan; a failure comes back as an arrival without payload.

        Args:
            submodel: what ``submodel`` makes for the plan, and is made here if it is not given.
                Unless it is empty, training is on what was sent, as at a client without a replica.
        """
        order = decode(plan, Plan)
        if (answer := self.answer(order)) is not None:
            return answer
        try:
            submodel = self.submodel(plan) if submodel is None else submodel
        except MessageError as error:
            return Arrival(order.client, None, failure=str(error))
        if submodel:
            return self._without_replica.visit(plan, submodel)
        visited = _carry_out(
            order,
            self._method,
            self.replica.model,
            self._examples,
            self.last,
            self._states,
            self.replica.exact,
            self.observer,
        )
        return self.finish(order, visited)

    def answer(self, order: Plan) -> Arrival | None:
        """What a client says to a plan that asks for no visit, or for one that it may not make;
        None where it is to make one."""
        if self._summing is None:
            return None
        from fullfed.privacy.phases import PHASE

        try:
            if PHASE in order.values:
                return Arrival(order.client, encode(self._summing.answer(order)))
            self._summing.check(order)
        except MessageError as error:
            return Arrival(order.client, None, failure=str(error))
        return None

    def finish(self, order: Plan, arrival: Arrival) -> Arrival:
        """A visit that was made here, or elsewhere on an equal replica, with what is sent in its
        report's place where the server is to know sums alone."""
        if self._summing is None or arrival.payload is None:
            return arrival
        report = decode(arrival.payload, Report)
        try:
            sent = self._summing.report(report, order, self._model_hash())
        except MessageError as error:
            return replace(arrival, payload=None, failure=str(error))
        return replace(arrival, payload=encode(sent))

    def _model_hash(self) -> str:
        """Of the replica as it is: once a version, however many clients visit it."""
        version = self.replica.version
        if self._hashed is None or self._hashed[0] != version:
            self._hashed = version, self.replica.content_hash()
        return self._hashed[1]

    def submodel(self, plan: Payload) -> Payload:
        """What a client without a replica is sent with a plan; empty where clients hold replicas.

        Raises:
            MessageError: there can be no such plan.
        """
        submodels = self._method.submodels
        if submodels is None:
            return b""
        return encode(submodels.submodel(self.replica.model, decode(plan, Plan)))

    @property
    def scales(self) -> bytes:
        """What every client is sent once of the codec's scales; empty where it has none."""
        return self._method.scales

    def static_weights(self) -> Payload:
        """What a client without a replica is sent once."""
        assert self._method.submodels is not None  # nobody asks for them otherwise
        return encode(self._method.submodels.static_weights(self.replica.model))

    @property
    def static_bytes(self) -> int:
        """How long ``static_weights`` are."""
        return self._without_replica.static_bytes

    def snapshot(self) -> tuple[Payload, Payload]:
        """The replica whole, and the update that led to it without its tensors."""
        return self.replica.snapshot(), self._last_values()

    def snapshot_bytes(self) -> int:
        """How long the two parts of ``snapshot`` are together."""
        return self.replica.snapshot_bytes + len(self._last_values())

    def _last_values(self) -> Payload:
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
        static_weights: Payload,
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

    def visit(self, plan: Payload, submodel: Payload) -> Arrival:
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
    except (VisitError, MessageError) as error:
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
