"""A method as six choices: scope, local work, codec, aggregation, server step, schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.tokens import TokenizedExample
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import SKIPPED, Plan, Report, Update, Value
from fullfed.federation.method import NOTHING, Sums, Visit, VisitError
from fullfed.headway import Observer, unobserved
from fullfed.methods.aggregation import Aggregation, WeightedMean
from fullfed.methods.checks import (
    BLOCKS,
    CLIENTS,
    LEFT_OUT,
    STEP,
    MessageChecks,
    changing,
    named,
    named_blocks,
    part_of,
    prefix_of,
    prefixed,
)
from fullfed.methods.codecs.codec import Change, Codec, Encoded, Shapes
from fullfed.methods.codecs.largest import largest_alone
from fullfed.methods.codecs.scaling import ModelScales
from fullfed.methods.local_work import LocalWork
from fullfed.methods.parts import PartReports, encoded_parts, with_plans
from fullfed.methods.schedules import Schedule, block_of, named_block
from fullfed.methods.scopes import Everything, Scope
from fullfed.methods.server_optimizers import ServerOptimizer, moments_of, take_step
from fullfed.methods.server_step import StepRule, Trained
from fullfed.methods.setting import Setting
from fullfed.methods.step_memory import short
from fullfed.methods.submodel import BlockSubmodels
from fullfed.randomness import Purpose, Stream
from fullfed.training.exact import dithered
from fullfed.training.first_order import TrainingError
from fullfed.training.loss import loss_value
from fullfed.training.memory import held
from fullfed.training.offload import restored
from fullfed.training.watch import VisitWatch

if TYPE_CHECKING:
    from fullfed.privacy.summing import Owner

_LOCAL, _CODEC = "local/", "codec/"  # whose state a tensor of a client's is


@dataclass(frozen=True)
class Composition:
    """A federated method (federation.method.Method) put together from six choices.

    Attributes:
        setting: the federation; has the aggregation rule.
        scope: which parameters train, and which an update changes.
        local: how a client improves them.
        codec: how a change becomes bytes, and back.
        step: how much of an aggregate is applied.
        schedule: who takes part when, and which block of the scope each one trains.
        blocks: of the scope, of which a plan's value ``block`` names one. Empty where every visit
            trains all of the scope.
        submodels: what clients without a replica are sent; None where all hold one.
        begins: the share of what is trained, its largest numbers, that a visit begins with; all
            others are 0 then.
        optimizer: the server's; None where the mean change is applied as it is.
        offload: whether the values before a visit wait in a file (a GPU's: in the host's memory).
            For codecs and steps that do not look at them.
    """

    setting: Setting
    scope: Scope
    local: LocalWork
    codec: Codec
    step: StepRule
    schedule: Schedule
    blocks: tuple[Shapes, ...] = ()
    submodels: BlockSubmodels | None = None
    begins: float = 1.0
    optimizer: ServerOptimizer | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        """See that the choices go together.

        Raises:
            UserError: they do not.
        """
        self.codec.check_parts(self.parts)
        self.aggregation.check_codec(self.codec)
        self.aggregation.check(self.schedule.fewest_together)

    @property
    def aggregation(self) -> Aggregation:
        return self.setting.aggregation

    @property
    def parts(self) -> tuple[Shapes, ...]:
        """What single visits train."""
        return self.blocks or (self.setting.shapes,)

    @property
    def cumulative(self) -> bool:
        return self.codec.cumulative

    @property
    def sums(self) -> Sums | None:
        return None

    @property
    def protects_records(self) -> bool:
        return self.local.protects_records

    @property
    def wants_scales(self) -> bool:
        """Whether the codec is to have scales, which are measured before the first round."""
        if self.codec.asks_scales == "auto":
            return isinstance(self.scope, Everything) and self.local.normalises
        return self.codec.asks_scales == "curvature"

    def scaled(self, scales: ModelScales) -> Composition:
        """The same method with these scales."""
        return replace(self, codec=self.codec.scaled(scales), step=self.step.scaled(scales))

    @property
    def scales(self) -> bytes:
        return b"" if self.codec.scales is None else self.codec.scales.data

    def owned(self, run: str, owner_of: Callable[[int], Owner]) -> Composition:
        return replace(self, local=self.local.owned(run, owner_of))

    @cached_property
    def stateful(self) -> bool:
        """Whether clients keep something between visits: the codec's, or the local work's."""
        return self.codec.stateful or self.local.stateful

    @cached_property
    def _checks(self) -> MessageChecks:
        weak, shapes = self.submodels is not None, self.setting.shapes
        return MessageChecks(self.codec, self.step, shapes, self.blocks, weak, self.stateful)

    def replicated(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return self.scope.replicated(model)

    def plans(self, round: int, last: Update | None) -> list[Plan]:
        plans, encoded, earlier = [], dict[int | None, Encoded](), self._codecs_last(changing(last))
        for client, own in self.schedule.visits(round).items():
            plan = Plan(round, client, own)
            block = self._block(plan)
            if block not in encoded:
                encoded[block] = self.codec.plan(round, earlier, self.shapes_of(plan))
            common = encoded[block]
            plans.append(Plan(round, client, {**common.values, **own}, common.tensors))
        return plans

    def ahead(self, round: int) -> list[Plan]:
        return []

    def client_state(self, plan: Plan) -> str | None:
        block = self._block(plan)
        name = "all" if block is None else f"block-{block}"
        return name if self.stateful else None

    def train(
        self,
        model: PreTrainedModel,
        plan: Plan,
        examples: Sequence[TokenizedExample],
        last: Update | None,
        state: Mapping[str, Tensor] = NOTHING,
        exact: Mapping[str, Tensor] = NOTHING,
        observer: Observer = unobserved,
    ) -> Visit:
        started = time.perf_counter()
        trained = self.scope.trained(model)
        try:
            self._checks.plan(plan)
            own = {name: trained[name] for name in self.shapes_of(plan)}
            exact = self._start(own, plan, exact)
            with (
                largest_alone([p.detach() for p in own.values()], self.begins),
                restored(own, exact, self.offload) as before,
                self._held(model, plan, own),
            ):
                visit = plan, examples, last, state, exact, before, own, started, observer
                return self._train(model, *visit)
        except (TrainingError, MessageError, UserError) as error:
            raise VisitError(str(error)) from error

    def _train(
        self,
        model: PreTrainedModel,
        plan: Plan,
        examples: Sequence[TokenizedExample],
        last: Update | None,
        state: Mapping[str, Tensor],
        exact: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        started: float,
        observer: Observer,
    ) -> Visit:
        local, shapes = self.setting.local, self.shapes_of(plan)
        stream = Stream(self.setting.seed, Purpose.BATCHES, plan.round, plan.client)
        steps = local.batches(len(examples))
        work = self.local.on(examples)
        batches = work.batches(examples, local.batch_size, steps, stream, plan)
        first, watch = next(batches), VisitWatch(observer, plan.client, steps)
        counted, kept = watch.counted(chain([first], batches)), named(_LOCAL, state)
        done = work.improve(model, parameters, counted, plan, kept, exact, watch.step)
        trained_at = time.perf_counter()
        after = {**parameters, **done.exact}
        change = Change(before, after, done.steps, named(_CODEC, state))
        encoded = self.codec.encode(change, plan, shapes)
        encoded_at = time.perf_counter()
        measure = done.measure or partial(loss_value, model, first.to(model.device), local)
        first_loss = done.losses[0] if done.first_known else None
        trained = Trained(parameters, before, after, measure, first_loss)
        measured = self.step.measure(trained, plan, changing(last), self._coordinates(shapes))
        values = {**encoded.values, **measured}
        if not all(math.isfinite(value) for value in values.values() if isinstance(value, float)):
            raise TrainingError(
                "the loss after training is not finite; lower local.learning_rate or set local.clip"
            )
        measured_at = time.perf_counter()
        loss = short(sum(done.losses) / len(done.losses)) if done.losses else 0.0
        return Visit(
            Report(plan.round, plan.client, len(examples), loss, values, encoded.tensors),
            train_seconds=trained_at - started + measured_at - encoded_at,
            encode_seconds=encoded_at - trained_at,
            state={**prefixed(_LOCAL, done.state), **prefixed(_CODEC, encoded.state)},
            metrics=done.metrics,
        )

    def _start(
        self, own: Mapping[str, Tensor], plan: Plan, exact: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Exact values that a visit begins from. Where a client's replica keeps none, they are
        others at every visit, so that each sees small steps on average."""
        replica = "dropped" not in plan.values
        kept = {name: exact[name] for name in own if name in exact} if replica else {}
        if kept or self.offload:
            return kept
        return dithered(own, Stream(self.setting.seed, Purpose.DITHER, plan.round, plan.client))

    def _held(
        self, model: PreTrainedModel, plan: Plan, trained: Mapping[str, Tensor]
    ) -> AbstractContextManager[None]:
        """Hold the model as the client does; a submodel is in few bits already."""
        frozen = "exact" if "dropped" in plan.values else self.setting.memory.frozen
        return held(model, list(trained.values()), frozen)

    def steps(self, samples: int) -> int:
        return self.setting.local.batches(samples)

    def report_limit(self, plan: Plan) -> int:
        return self._checks.report_limit(plan, self.shapes_of(plan))

    def check(self, report: Report, plan: Plan) -> None:
        self._checks.report(report)
        self.codec.check(report, plan, self.shapes_of(plan))
        self.step.check(report)

    def part(self, plan: Plan) -> int | None:
        return self._block(plan)

    def norm(
        self,
        report: Report,
        plan: Plan,
        model: PreTrainedModel,
        exact: Mapping[str, Tensor] = NOTHING,
    ) -> float:
        trained, shapes = self.scope.trained(model), self.shapes_of(plan)
        own = {name: trained[name] for name in shapes}
        if self.codec.sends_weights:
            own |= self._start(own, plan, exact)
        return self.codec.norm(report, plan, shapes, own)

    def aggregate(
        self, plans: Sequence[Plan], reports: Iterable[Report], last: Update | None
    ) -> Update:
        return self.combined(with_plans(reports, plans), last)

    def combined(self, pairs: Iterable[tuple[Plan, Report]], last: Update | None) -> Update:
        """One update from checked reports with their plans; a client's may be on several parts."""
        last = changing(last)
        parts: dict[int | None, PartReports] = {}
        lights: dict[int, Report] = {}  # without their tensors
        for plan, report in pairs:
            block = self._block(plan)
            if block not in parts:
                parts[block] = PartReports(self.codec, self.aggregation, plan, self.shapes_of(plan))
            parts[block].add(report, plan)
            lights[report.client] = replace(report, tensors={})
            del report  # before the next is decoded
        blocks = sorted(block for block in parts if block is not None)
        ordered = {block: parts[block] for block in blocks or parts}
        values, tensors = encoded_parts(ordered, self._codecs_last(last))
        one = next(iter(parts))  # a rule that measures has one part a round
        known = values.get(prefix_of(one) + "energy")
        energy = known if isinstance(known, float) else None
        exact, light = self._coordinates(parts[one].shapes), list(lights.values())
        values |= self.step.decide(light, energy, last, exact, self.aggregation.scalar)
        if self.blocks:
            values[BLOCKS] = [*blocks]
        if self.stateful:
            values[CLIENTS] = [*lights]
        return Update(light[0].round, values, tensors)

    def completed(self, update: Update, model: PreTrainedModel) -> Update:
        return update

    def completion(self, round: int) -> Shapes:
        """The tensors, float32, that ``completed`` adds to a round's update."""
        return {}

    def alone(self, report: Report, plan: Plan, last: Update | None, share: float) -> Update:
        block, shapes = self._block(plan), self.shapes_of(plan)
        part, prefix = PartReports(self.codec, WeightedMean(), plan, shapes), prefix_of(block)
        part.add(report, plan)
        exact, (encoded, _) = self._coordinates(shapes), part.encoded(None)
        step = share * self.step.known(changing(last), exact)
        values = {**prefixed(prefix, encoded.values), STEP: step}
        if block is not None:
            values[BLOCKS] = [block]
        return Update(plan.round, values, prefixed(prefix, encoded.tensors))

    def mean(self, losses: Sequence[float]) -> float | None:
        return None if self.protects_records else self.aggregation.scalar(losses)

    def skip(self, round: int, last: Update | None) -> Update | None:
        skipped = 1 + (last.skipped if last else 0)
        return None if skipped > self.schedule.patience else self.skipped(round, last, skipped)

    def skipped(self, round: int, last: Update | None, count: int) -> Update:
        """The update of a round that is passed over, the last of ``count`` in a row."""
        values = {n: v for n, v in (last.values if last else {}).items() if n != LEFT_OUT}
        none: dict[str, Value] = {CLIENTS: []} if self.stateful else {}
        return Update(round, {**values, **none, SKIPPED: count})

    def check_values(self, update: Update) -> None:
        self._checks.update_values(update)

    def check_update(self, update: Update) -> None:
        self._checks.update(update)

    def moments(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return moments_of(self.optimizer, self.scope.replicated(model)) if self.optimizer else {}

    def apply(
        self, model: PreTrainedModel, update: Update, moments: Mapping[str, Tensor] = NOTHING
    ) -> None:
        if update.skipped:
            return
        parameters, change = self.scope.replicated(model), partial(self._change, update)
        if self.optimizer and moments:
            changes = not self.codec.sends_weights
            take_step(self.optimizer, parameters, moments, change, changes=changes)
        else:
            change(parameters)

    def _change(self, update: Update, parameters: Mapping[str, Tensor]) -> None:
        if not self.blocks:
            self.codec.apply(parameters, update, self.setting.shapes)
            return
        for block in named_blocks(update, len(self.blocks)):
            own, shapes = part_of(update, block), self.blocks[block]
            self.codec.apply({name: parameters[name] for name in shapes}, own, shapes)

    def _block(self, plan: Plan) -> int | None:
        return block_of(plan) if self.blocks else None

    def shapes_of(self, plan: Plan) -> Shapes:
        """What a visit trains.

        Raises:
            MessageError: the plan names no block, or one that does not exist.
        """
        return named_block(self.blocks, plan) if self.blocks else self.setting.shapes

    def _codecs_last(self, last: Update | None) -> Update | None:
        """The last update as far as it is about the same parameters."""
        return None if self.blocks else last

    def _coordinates(self, shapes: Shapes) -> float:
        return 0.0 if self.codec.directions is None else self.codec.coordinates(shapes)
