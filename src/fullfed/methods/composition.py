"""A method as four choices: scope, local optimizer, codec, schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import training_batches
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.federation.messages import MessageError, Plan, Report, Update, Value, number
from fullfed.federation.method import NOTHING, Visit, VisitError
from fullfed.methods.blocks import Shapes, block_of, named_block
from fullfed.methods.codecs import Change, Codec, Payload
from fullfed.methods.handout import Handouts
from fullfed.methods.local import ByGradients, LocalOptimizer
from fullfed.methods.schedules import Schedule
from fullfed.methods.scopes import Scope
from fullfed.methods.setting import Setting
from fullfed.methods.steps import StepRule, Trained
from fullfed.sketch import Purpose, Stream
from fullfed.training.first_order import TrainingError
from fullfed.training.memory import held
from fullfed.training.parking import restored

_HEADER_BYTES = 4096  # room for a message's header ...
_HEADER_BYTES_PER_TENSOR = 512  # ... and for each tensor's name and shape in it
_LOCAL, _CODEC = "local/", "codec/"  # whose state a tensor of a client's is
_SKIPPED = "skipped"  # in an update that changes nothing: of how many in a row it is


@dataclass(frozen=True)
class Composition:
    """A federated method (federation.method.Method) put together from four choices.

    Attributes:
        setting: the federation.
        scope: which parameters train.
        local: how a client improves them.
        codec: how a change becomes bytes, and back.
        step: how much of a merged change is applied.
        schedule: who takes part when, and which part of the scope each one trains.
        parts: blocks of the scope, of which a plan's value ``block`` names one. Empty where every
            visit trains all of the scope.
        remembers: whether clients keep what codec and local optimizer keep, for each part.
        sets_aside: whether the values before a visit wait in a file (an accelerator's: in the
            host's memory). For codecs and steps that do not look at them.
    """

    setting: Setting
    scope: Scope
    local: LocalOptimizer
    codec: Codec
    step: StepRule
    schedule: Schedule
    parts: tuple[Shapes, ...] = ()
    remembers: bool = False
    sets_aside: bool = False

    @property
    def cumulative(self) -> bool:
        return self.codec.cumulative

    def replicated(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return self.scope.replicated(model)

    def plans(self, round: int, last: Update | None) -> list[Plan]:
        payload = self.codec.plan(round, _remembered(last))
        return [
            Plan(round, client, {**payload.values, **own}, payload.tensors)
            for client, own in self.schedule.visits(round).items()
        ]

    def keeps(self, plan: Plan) -> str | None:
        if not self.remembers:
            return None
        return f"block-{block_of(plan)}" if self.parts else "all"

    def train(
        self,
        model: PreTrainedModel,
        plan: Plan,
        examples: Sequence[TokenizedExample],
        last: Update | None,
        kept: Mapping[str, Tensor] = NOTHING,
    ) -> Visit:
        started = time.perf_counter()
        after = self._trained(model, plan)
        try:
            with (
                restored(after, self.sets_aside) as before,
                self._held(model, plan, list(after.values())),
            ):
                return self._train(
                    model, plan, examples, _remembered(last), kept, before, after, started
                )
        except (TrainingError, MessageError, UserError) as error:
            raise VisitError(str(error)) from error

    def _train(
        self,
        model: PreTrainedModel,
        plan: Plan,
        examples: Sequence[TokenizedExample],
        last: Update | None,
        kept: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        started: float,
    ) -> Visit:
        work = self.setting.work
        steps = work.batches(len(examples))
        stream = Stream(self.setting.seed, Purpose.BATCHES, plan.round, plan.client)
        batches = training_batches(examples, work.batch_size, steps, stream)
        first = next(batches)
        local = self.local
        if isinstance(local, ByGradients):
            local = local.continuing(_under(_LOCAL, kept))
        done = local.improve(model, after, chain([first], batches), plan)
        trained_at = time.perf_counter()
        change = Change(before, {**after, **done.exact}, done.walk, _under(_CODEC, kept))
        payload = self.codec.encode(change, plan)
        encoded_at = time.perf_counter()
        trained = Trained(model, before, after, first.to(model.device), done.losses[0])
        values = {**payload.values, **self.step.measure(trained, plan, last)}
        if not all(math.isfinite(value) for value in values.values() if isinstance(value, float)):
            raise TrainingError(
                "the loss after training is not finite; lower local.learning_rate or set local.clip"
            )
        measured_at = time.perf_counter()
        report = Report(
            plan.round,
            plan.client,
            samples=len(examples),
            loss=sum(done.losses) / len(done.losses),
            values=values,
            tensors=payload.tensors,
        )
        return Visit(
            report,
            train_seconds=trained_at - started + measured_at - encoded_at,
            encode_seconds=encoded_at - trained_at,
            kept={**_placed(_LOCAL, done.kept), **_placed(_CODEC, payload.kept)},
        )

    def _held(
        self, model: PreTrainedModel, plan: Plan, trained: list[Tensor]
    ) -> AbstractContextManager[None]:
        """Hold the model as the client does; a surrogate is packed already."""
        memory = self.setting.optimizer.memory
        if "dropped" in plan.values:
            memory = replace(memory, frozen="exact")
        return held(model, trained, memory)

    def equipment(self, model: PreTrainedModel) -> Update:
        return self._handouts.equipment(model)

    def handout(self, model: PreTrainedModel, plan: Plan) -> Update | None:
        return self._handouts.handout(model, plan)

    def assembled(
        self,
        like: PreTrainedModel,
        equipment: Update,
        handout: Update,
        plan: Plan,
        device: torch.device,
    ) -> PreTrainedModel:
        return self._handouts.assembled(like, equipment, handout, plan, device)

    @property
    def _handouts(self) -> Handouts:
        return Handouts(self.parts, 4 if self.setting.optimizer.memory.frozen == "int4" else 8)

    def report_limit(self, plan: Plan) -> int:
        header = _HEADER_BYTES + _HEADER_BYTES_PER_TENSOR * len(self.setting.shapes)
        return header + self.codec.report_bytes(plan)

    def check(self, report: Report, plan: Plan) -> None:
        self.codec.check(report, plan)
        self.step.check(report)

    def merge(
        self, plans: Sequence[Plan], reports: Iterable[Report], last: Update | None
    ) -> Update:
        light: list[Report] = []

        def weighted() -> Iterator[tuple[float, Report]]:
            for report in reports:
                light.append(replace(report, tensors={}))
                yield self._weight(report), report

        plan, last = plans[0], _remembered(last)
        payload = self.codec.merge(weighted(), Payload(plan.values, plan.tensors), last)
        values: dict[str, Value] = {**payload.values}
        values |= self.step.decide(light, self.codec.energy(payload), last)
        if self.remembers:
            values["merged"] = [report.client for report in light]
        return Update(plan.round, values, payload.tensors)

    def skip(self, round: int, last: Update | None) -> Update | None:
        values = {} if last is None else last.values
        skipped = 1 + (int(number(last, _SKIPPED)) if last and _SKIPPED in values else 0)
        if skipped > self.schedule.patience:
            return None
        none: dict[str, Value] = {"merged": []} if self.remembers else {}
        return Update(round, {**values, **none, _SKIPPED: skipped})

    def apply(self, model: PreTrainedModel, update: Update) -> None:
        if _SKIPPED not in update.values:
            self.codec.apply(self.scope.replicated(model), update)

    def _trained(self, model: PreTrainedModel, plan: Plan) -> dict[str, Tensor]:
        trained = self.scope.trained(model)
        if not self.parts:
            return trained
        try:
            return {name: trained[name] for name in named_block(self.parts, plan)}
        except MessageError as error:
            raise VisitError(str(error)) from error

    def _weight(self, report: Report) -> float:
        return float(report.samples) if self.setting.merge_weights == "samples" else 1.0


def _placed(place: str, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {place + name: tensor for name, tensor in kept.items()}


def _under(place: str, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(place): t for name, t in kept.items() if name.startswith(place)}


def _remembered(last: Update | None) -> Update | None:
    """The last update for what it says; one that passes over the first round says nothing."""
    return None if last is None or set(last.values) == {_SKIPPED} else last
