"""Methods whose visits train the last layers of a model, some more of them than others.

What visits train are suffixes of the model, each part of the next longer one. What updates change
are the segments between their beginnings: all who train any of a segment train all of it, so its
mean is over them. A report holds the encoding of each of its suffix's segments, an update that of
each segment that was trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Report, Update
from fullfed.federation.method import NOTHING
from fullfed.methods.aggregation import WeightedMean
from fullfed.methods.checks import changing, named, part_of, prefix_of, prefixed
from fullfed.methods.codecs.codec import Change, Codec, Encoded, Shapes
from fullfed.methods.codecs.scaling import ModelScales
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import FirstOrder
from fullfed.methods.schedules import named_block
from fullfed.methods.server_step import ConstantStep
from fullfed.methods.setting import Setting
from fullfed.training.first_order import Improvement, train
from fullfed.training.prefix import Prefix
from fullfed.training.watch import OnStep, unwatched


def suffix(setting: Setting, share: float) -> Shapes:
    """The longest suffix of a model's layers with at most a share of its parameters.

    What comes after the layers (final norm, head) is part of every suffix; what comes before them
    (embeddings, and the head that is tied to them) of the whole model alone. The shortest suffix
    is what comes after the layers, or the last layer where that is nothing, whatever it takes.

    Raises:
        UserError: the model has no layers to be found.
    """
    shapes, layers = setting.shapes, setting.layers
    if not layers:
        raise UserError(
            "model.path: no list of layers can be found in this model; take a method that trains "
            "all of it, such as fedavg."
        )
    names, inner = list(shapes), {name for layer in layers for name in layer}
    begin = min(names.index(name) for name in inner)
    after = [name for name in names[begin:] if name not in inner]
    found = [names]
    found += [[*(n for own in layers[k:] for n in own), *after] for k in range(len(layers) + 1)]
    sizes = [sum(shapes[name].numel() for name in own) for own in found]
    fitting = (own for own, d in zip(found, sizes, strict=True) if 0 < d <= share * sizes[0])
    chosen = set(next(fitting, [own for own in found if own][-1]))
    return {name: shapes[name] for name in names if name in chosen}


def segments_of(suffixes: Sequence[Shapes]) -> tuple[Shapes, ...]:
    """What of each suffix the next shorter one does not have; of the shortest all.

    Args:
        suffixes: the longest first.
    """
    shorter = [*suffixes[1:], {}]
    return tuple(
        {name: shape for name, shape in own.items() if name not in less}
        for own, less in zip(suffixes, shorter, strict=True)
    )


@dataclass(frozen=True)
class BySegment(Codec):
    """Encodes each segment of what a visit trained by itself, under the prefix ``<segment>/``.

    Attributes:
        inner: encodes a segment.
        segments: of the model, in its order.
    """

    inner: Codec
    segments: tuple[Shapes, ...]

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: the codec says values beside tensors, which a part of a message has no room
                for.
        """
        if self.inner.plan_values or self.inner.report_values:
            raise UserError(
                "codec: this method's clients train different parts of the model, and this codec "
                "has something to say for each round to all; take codec.basis = 'sign' for a "
                "sketch, or another codec."
            )

    def own(self, shapes: Shapes) -> list[tuple[int, Shapes]]:
        """The segments of a suffix, by number."""
        return [(n, part) for n, part in enumerate(self.segments) if part.keys() <= shapes.keys()]

    @property
    def comparable(self) -> bool:
        return self.inner.comparable

    @property
    def sends_weights(self) -> bool:
        return self.inner.sends_weights

    @property
    def stacks(self) -> bool:
        return self.inner.stacks

    @property
    def votes(self) -> bool:
        return self.inner.votes

    @property
    def stateful(self) -> bool:
        return self.inner.stateful

    @property
    def directions(self) -> Literal["client", "shared"] | None:
        return self.inner.directions

    @property
    def asks_scales(self) -> Literal["auto", "curvature", "none"]:
        return self.inner.asks_scales

    @property
    def scales(self) -> ModelScales | None:
        return self.inner.scales

    def scaled(self, scales: ModelScales) -> BySegment:
        return replace(self, inner=self.inner.scaled(scales))

    def coordinates(self, shapes: Shapes) -> float:
        return sum(self.inner.coordinates(part) for _, part in self.own(shapes))

    def check_parts(self, parts: Sequence[Shapes]) -> None:
        self.inner.check_parts(self.segments)

    def encode(self, change: Change, plan: Plan, shapes: Shapes) -> Encoded:
        tensors: dict[str, Tensor] = {}
        state: dict[str, Tensor] = {}
        for number, part in self.own(shapes):
            before, after = ({n: v[n] for n in part} for v in (change.before, change.after))
            kept = named(prefix_of(number), change.state)
            encoded = self.inner.encode(Change(before, after, (), kept), plan, part)
            tensors |= prefixed(prefix_of(number), encoded.tensors)
            state |= prefixed(prefix_of(number), encoded.state)
        return Encoded(tensors=tensors, state=state)

    def report_bytes(self, plan: Plan, shapes: Shapes) -> int:
        return sum(self.inner.report_bytes(plan, part) for _, part in self.own(shapes))

    def check(self, report: Report, plan: Plan, shapes: Shapes) -> None:
        parts = self.split(report, shapes)
        if sum(len(own.tensors) for own, _ in parts) != len(report.tensors):
            raise MessageError("the report holds tensors of a part that its plan does not name")
        for own, part in parts:
            self.inner.check(own, plan, part)

    def norm(
        self, report: Report, plan: Plan, shapes: Shapes, parameters: Mapping[str, Tensor]
    ) -> float:
        return math.hypot(
            *(
                self.inner.norm(own, plan, part, {name: parameters[name] for name in part})
                for own, part in self.split(report, shapes)
            )
        )

    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
        for number, part in self.own(shapes):
            own = {name: parameters[name] for name in part}
            self.inner.apply(own, part_of(update, number), part)

    def split(self, report: Report, shapes: Shapes) -> list[tuple[Report, Shapes]]:
        """A report on each of its suffix's segments, under the names that the codec gave."""
        return [
            (replace(report, tensors=named(prefix_of(number), report.tensors)), part)
            for number, part in self.own(shapes)
        ]


@dataclass(frozen=True)
class SuffixTraining(FirstOrder):
    """First-order steps on a suffix, from what the layers before it make of the visit's samples."""

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
        state: Mapping[str, Tensor],
        exact: Mapping[str, Tensor] = NOTHING,
        on_step: OnStep = unwatched,
    ) -> Improvement:
        prefix = Prefix(model, parameters.values())
        if not prefix.layers:
            return super().improve(model, parameters, batches, plan, state, exact, on_step)
        setting, usual = self.setting, self.loss(list(parameters.values()))
        local = setting.local.in_round(plan.version, setting.federation.rounds)
        model.eval()  # type: ignore[no-untyped-call]
        all = list(batches)
        with prefix.kept(all, local.precision, local.micro_batch_size) as outputs:

            def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
                with outputs.serving(batch):
                    return usual(model, batch)

            done = train(model, parameters, all, local, setting.memory, loss, state, exact, on_step)
        return done if self.stateful else replace(done, state={})


@dataclass(frozen=True)
class SuffixComposition(Composition):
    """A method whose visits train suffixes. They are its ``blocks``, the longest first, of which
    a plan names one; its codec is ``BySegment``.

    Attributes:
        classes: of clients: the name of each, and the number of its suffix.
    """

    classes: tuple[tuple[str, int], ...] = ()

    @cached_property
    def segmented(self) -> Composition:
        """The method whose blocks are the segments: it makes and applies updates."""
        assert isinstance(self.codec, BySegment)  # as ``build`` makes it
        choices = self.setting, self.scope, self.local, self.codec.inner, self.step, self.schedule
        return Composition(*choices, blocks=self.codec.segments)

    def by_segment(self, plan: Plan) -> list[Plan]:
        """A plan for each segment that a visit trains, as of the method whose blocks they are."""
        assert isinstance(self.codec, BySegment)
        own = self.codec.own(named_block(self.blocks, plan))
        return [replace(plan, values={"block": number}) for number, _ in own]

    def aggregate(
        self, plans: Sequence[Plan], reports: Iterable[Report], last: Update | None
    ) -> Update:
        plan_of = {plan.client: plan for plan in plans}
        pairs = (pair for r in reports for pair in self._pairs(plan_of[r.client], r))
        return self.segmented.combined(pairs, last)

    def alone(self, report: Report, plan: Plan, last: Update | None, share: float) -> Update:
        step = ConstantStep(share * self.step.known(changing(last), 0.0))
        setting = replace(self.setting, aggregation=WeightedMean())
        method = replace(self.segmented, setting=setting, step=step)
        return method.combined(self._pairs(plan, report), last)

    def _pairs(self, plan: Plan, report: Report) -> Iterator[tuple[Plan, Report]]:
        assert isinstance(self.codec, BySegment)
        parts = self.codec.split(report, named_block(self.blocks, plan))
        for own, (part, _) in zip(self.by_segment(plan), parts, strict=True):
            yield own, part

    def check_values(self, update: Update) -> None:
        self.segmented.check_values(update)

    def check_update(self, update: Update) -> None:
        self.segmented.check_update(update)

    def apply(
        self, model: PreTrainedModel, update: Update, moments: Mapping[str, Tensor] = NOTHING
    ) -> None:
        self.segmented.apply(model, update, moments)
