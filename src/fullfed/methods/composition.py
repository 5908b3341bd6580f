"""A method as four choices: scope, local optimizer, codec, schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import training_batches
from fullfed.data.tokens import TokenizedExample
from fullfed.errors import UserError
from fullfed.federation.messages import Plan, Report, Update
from fullfed.federation.method import Visit, VisitError
from fullfed.methods.codecs import Change, Codec, Payload
from fullfed.methods.local import LocalOptimizer
from fullfed.methods.schedules import SampledCohort
from fullfed.methods.scopes import Scope
from fullfed.methods.setting import Setting
from fullfed.methods.steps import StepRule, Trained
from fullfed.sketch import Purpose, Stream
from fullfed.training.first_order import TrainingError

_HEADER_BYTES = 4096  # room for a message's header ...
_HEADER_BYTES_PER_TENSOR = 512  # ... and for each tensor's name and shape in it


@dataclass(frozen=True)
class Composition:
    """A federated method (federation.method.Method) put together from four choices.

    Attributes:
        setting: the federation.
        scope: which parameters train.
        local: how a client improves them.
        codec: how a change becomes bytes, and back.
        step: how much of a merged change is applied.
        schedule: who takes part when.
    """

    setting: Setting
    scope: Scope
    local: LocalOptimizer
    codec: Codec
    step: StepRule
    schedule: SampledCohort

    @property
    def cumulative(self) -> bool:
        return self.codec.cumulative

    def replicated(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return self.scope.replicated(model)

    def plans(self, round: int, last: Update | None) -> list[Plan]:
        payload = self.codec.plan(round, last)
        return [
            Plan(round, client, payload.values, payload.tensors)
            for client in self.schedule.cohort(round)
        ]

    def train(
        self,
        model: PreTrainedModel,
        plan: Plan,
        examples: Sequence[TokenizedExample],
        last: Update | None,
    ) -> Visit:
        started = time.perf_counter()
        after = self.scope.trained(model)
        before = {name: p.detach().clone() for name, p in after.items()}
        try:
            return self._train(model, plan, examples, last, before, after, started)
        except (TrainingError, UserError) as error:
            raise VisitError(str(error)) from error
        finally:
            _restore(after, before)

    def _train(
        self,
        model: PreTrainedModel,
        plan: Plan,
        examples: Sequence[TokenizedExample],
        last: Update | None,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        started: float,
    ) -> Visit:
        work = self.setting.work
        steps = work.batches(len(examples))
        stream = Stream(self.setting.seed, Purpose.BATCHES, plan.round, plan.client)
        batches = training_batches(examples, work.batch_size, steps, stream)
        first = next(batches)
        done = self.local.improve(model, after, chain([first], batches), plan)
        trained_at = time.perf_counter()
        payload = self.codec.encode(Change(before, after, done.walk), plan)
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
        )

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

        plan = plans[0]
        payload = self.codec.merge(weighted(), Payload(plan.values, plan.tensors), last)
        values = {**payload.values, **self.step.decide(light, self.codec.energy(payload), last)}
        return Update(plan.round, values, payload.tensors)

    def apply(self, model: PreTrainedModel, update: Update) -> None:
        self.codec.apply(self.scope.replicated(model), update)

    def _weight(self, report: Report) -> float:
        return float(report.samples) if self.setting.merge_weights == "samples" else 1.0


def _restore(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
