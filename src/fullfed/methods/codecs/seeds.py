"""FedKSeed's codec: a report is one direction number and one derivative a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fullfed.config import LocalTable
from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Report, Update, number
from fullfed.federation.replica import norm
from fullfed.methods.codecs.codec import (
    Change,
    Codec,
    Contribution,
    Encoded,
    Shapes,
    Summable,
    check_tensors,
    elements,
)
from fullfed.sketch import (
    LARGEST_SCALE,
    Distribution,
    Purpose,
    Stream,
    accumulate_,
    perturb_,
    uniforms,
)
from fullfed.training.zeroth_order import RandomDirection

_LONGEST = 1 << 16  # steps of a visit measured in epochs, whose samples the server does not know
_BOUND = 1000.0  # amplitudes are clipped to this, so that no single one rules


@dataclass(frozen=True)
class Candidates:
    """K random directions that everybody knows by their numbers.

    Attributes:
        seed: the recipe's.
        count: K.
        distribution: of a direction's entries.
    """

    seed: int
    count: int
    distribution: Distribution

    def direction(self, number: int) -> RandomDirection:
        stream = Stream(self.seed, Purpose.DIRECTION, owner=number)
        return RandomDirection(stream, self.distribution)

    def draw(self, plan: Plan, step: int) -> int:
        """The candidate of a visit's step.

        Uniformly at random, or by the plan's tensor ``probabilities``, float32 (K,).
        """
        uniform = uniforms(Stream(self.seed, Purpose.CANDIDATES, plan.round, plan.client), 1, step)
        if "probabilities" not in plan.tensors:
            return int(uniform[0] * self.count)
        ends = np.cumsum(plan.tensors["probabilities"].double().numpy())
        place = int(np.searchsorted(ends, uniform[0] * ends[-1], side="right"))
        return min(place, self.count - 1)  # the product may round up to the last end

    def step_(self, weights: Sequence[Tensor], number: int, scale: float) -> None:
        """weights += scale * z of one candidate, in place."""
        perturb_(weights, self.direction(number).stream, scale, self.distribution)

    def combine_(self, weights: Sequence[Tensor], amounts: Tensor, scale: float) -> None:
        """weights += scale * sum of amounts[k] * z of candidate k, in one pass; amounts (K,)."""
        used = amounts.nonzero().flatten().tolist()  # zeros change no bit of a sum from zero
        streams = [self.direction(number).stream for number in used]
        scalars = (scale * amounts[used].double()).tolist()
        accumulate_(weights, streams, scalars, self.distribution)


@dataclass(frozen=True)
class Seeds(Codec):
    """Sends each step's candidate and derivative; the server adds up derivatives by candidate.

    A report holds ``candidates`` (int16, or int32 where K needs it) and ``derivatives``
    (float32), one of each a step, in their order. An update holds ``accumulators``, float32
    (K,): for each candidate the sum, over all rounds, of the clients' mean of the derivatives
    along it. It is cumulative: applied to the base model, it replaces all earlier ones.

    Where candidates are drawn by importance, an update also holds what their probabilities
    follow from (``amplitudes``, float32, and ``visits``, int32), and a plan the ``probabilities``.

    Attributes:
        candidates: the directions.
        local: the recipe's table: how many steps a visit has, and their learning rate.
        by_importance: whether candidates are drawn as FedKSeed-Pro draws them.
    """

    candidates: Candidates
    local: LocalTable
    by_importance: bool = False

    @property
    def cumulative(self) -> bool:
        return True

    @property
    def comparable(self) -> bool:
        """Of many candidates few are one client's, and fewer several clients'."""
        return False

    def for_sums(self, bits: int, shapes: Shapes) -> Codec:
        return (
            super().for_sums(bits, shapes)
            if self.by_importance
            else SummedSeeds(self.candidates, self.local)
        )

    def plan(self, round: int, last: Update | None, shapes: Shapes) -> Encoded:
        if not self.by_importance:
            return Encoded()
        amplitudes, visits = self._history(last)
        return Encoded(tensors={"probabilities": probabilities(amplitudes, visits)})

    def encode(self, change: Change, plan: Plan, shapes: Shapes) -> Encoded:
        numbers, derivatives = zip(*change.steps, strict=True)
        return Encoded(
            tensors={
                "candidates": torch.tensor(numbers, dtype=self._integer),
                "derivatives": torch.tensor(derivatives, dtype=torch.float32),
            }
        )

    def report_bytes(self, plan: Plan, shapes: Shapes) -> int:
        return (self.local.steps or _LONGEST) * (self._integer.itemsize + 4)

    def update_bytes(self, plan: Plan, shapes: Shapes, reports: int) -> int:
        return (12 if self.by_importance else 4) * self.candidates.count

    def check(self, report: Report, plan: Plan, shapes: Shapes) -> None:
        steps = (self.local.batches(report.samples),)
        check_tensors(
            report, {"candidates": (steps, self._integer), "derivatives": (steps, torch.float32)}
        )
        lowest, highest = torch.aminmax(report.tensors["candidates"])
        if lowest < 0 or highest >= self.candidates.count:
            raise MessageError(
                f"the report's candidates are {int(lowest)} to {int(highest)}, "
                f"but they are numbered from 0 to {self.candidates.count - 1}"
            )

    def check_plan(self, plan: Plan, shapes: Shapes) -> None:
        due = (self.candidates.count,), torch.float32
        check_tensors(plan, {"probabilities": due} if self.by_importance else {})

    def check_update(self, update: Update, shapes: Shapes) -> None:
        due = (self.candidates.count,), torch.float32
        kinds = {"accumulators": due}
        if self.by_importance:
            kinds |= {"amplitudes": due, "visits": (due[0], torch.int32)}
        check_tensors(update, kinds)
        if not bool((update.tensors["accumulators"].abs() <= LARGEST_SCALE).all()):
            raise MessageError(f"the update's accumulators are not within {LARGEST_SCALE:g}")

    def decode(self, report: Report, plan: Plan, shapes: Shapes) -> Contribution:
        numbers = report.tensors["candidates"].int()
        derivatives = report.tensors["derivatives"].double()
        sums = self._zeros().index_add_(0, numbers, derivatives)
        if not self.by_importance:
            return Contribution({"accumulators": sums})
        clipped = derivatives.abs().clamp(max=_BOUND)
        counted = {
            "amplitudes": self._zeros().index_add_(0, numbers, clipped),
            "visits": self._zeros().index_add_(0, numbers, torch.ones_like(derivatives)),
        }
        return Contribution({"accumulators": sums}, sums=counted)

    def norm(
        self, report: Report, plan: Plan, shapes: Shapes, parameters: Mapping[str, Tensor]
    ) -> float:
        """Directions have numbers of variance 1, and are next to orthogonal."""
        sums = self.decode(report, plan, shapes).tensors["accumulators"]
        return self.local.learning_rate * math.sqrt(elements(shapes)) * norm([sums])

    def encode_update(
        self, aggregate: Contribution, plan: Plan, shapes: Shapes, last: Update | None
    ) -> Encoded:
        before = self._zeros() if last is None else last.tensors["accumulators"].double()
        tensors = {"accumulators": (before + aggregate.tensors["accumulators"]).float()}
        if self.by_importance:
            amplitudes, visits = (tensor.double() for tensor in self._history(last))
            tensors["amplitudes"] = (amplitudes + aggregate.sums["amplitudes"]).float()
            tensors["visits"] = (visits + aggregate.sums["visits"]).round().int()
        return Encoded(tensors=tensors)

    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
        accumulators = update.tensors["accumulators"]
        scale = -self.local.learning_rate * number(update, "server_step")
        self.candidates.combine_([p.detach() for p in parameters.values()], accumulators, scale)

    @property
    def _integer(self) -> torch.dtype:
        return torch.int16 if self.candidates.count <= 1 << 15 else torch.int32

    def _zeros(self) -> Tensor:
        return torch.zeros(self.candidates.count, dtype=torch.float64)

    def _history(self, last: Update | None) -> tuple[Tensor, Tensor]:
        """Of each candidate, the sum of the amplitudes so far, and how many."""
        if last is None or not self.by_importance:
            return self._zeros(), self._zeros()
        return last.tensors["amplitudes"], last.tensors["visits"]


@dataclass(frozen=True)
class SummedSeeds(Seeds):
    """The same where a round's sum is all that is known: an update has that round's derivatives by
    candidate, and takes the last version to the next."""

    @property
    def cumulative(self) -> bool:
        return False

    def encode_update(
        self, aggregate: Contribution, plan: Plan, shapes: Shapes, last: Update | None
    ) -> Encoded:
        return super().encode_update(aggregate, plan, shapes, None)

    def summable(self, shapes: Shapes) -> Summable:
        """Derivatives of single steps, few of them clipped, added up by candidate."""
        return Summable({"accumulators": torch.Size([self.candidates.count])}, _BOUND, tail=256.0)


def probabilities(amplitudes: Tensor, visits: Tensor) -> Tensor:
    """How likely each candidate is drawn, float32 (K,), from its visits so far (FedKSeed-Pro).

        m = mean amplitude, 0 before the first visit;  p = softmax((m - min m) / (max m - min m))

    Args:
        amplitudes: of each candidate, the sum of its derivatives' clipped absolute values.
        visits: how many those are.
    """
    means = amplitudes.double() / visits.clamp(min=1)
    low, high = torch.aminmax(means)
    spread = (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.softmax((means - low) / spread, 0).float()
