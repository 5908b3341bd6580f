"""Candidate directions: K random directions that everybody knows by their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.federation.messages import Plan
from fullfed.methods.local import Improvement
from fullfed.sketch import Purpose, Stream, accumulate_, perturb_, uniforms
from fullfed.sketch.directions import Distribution
from fullfed.training.first_order import TrainingError
from fullfed.training.zeroth_order import Direction, Neighbourhood

SUM_TOLERANCE = 1e-4  # of 1, for probabilities in float32


@dataclass(frozen=True)
class Candidates:
    """K directions, whose numbers are all that need be said of them.

    Attributes:
        seed: the recipe's.
        count: K.
        distribution: of a direction's entries.
    """

    seed: int
    count: int
    distribution: Distribution

    def direction(self, number: int) -> Direction:
        stream = Stream(self.seed, Purpose.DIRECTION, owner=number)
        return Direction(stream, self.distribution)

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
class AlongCandidates:
    """Two-sided SPSA: each step goes down one candidate direction (FedKSeed, eqs. 3 and 4).

        g = [f(w + eps z) - f(w - eps z)] / (2 eps),   w <- w - learning_rate * g * z

    Attributes:
        candidates: which directions there are.
        distance: eps.
        learning_rate: of a step.
    """

    candidates: Candidates
    distance: float
    learning_rate: float

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
    ) -> Improvement:
        check_probabilities(plan, self.candidates.count)
        nearby = Neighbourhood(model, parameters)
        weights = [p.detach() for p in parameters.values()]
        losses, walk = [], []
        for step, batch in enumerate(batches):
            number = self.candidates.draw(plan, step)
            direction = self.candidates.direction(number)
            loss, slope = nearby.derivative(batch.to(model.device), direction, self.distance)
            self.candidates.step_(weights, number, -self.learning_rate * slope)
            losses.append(loss)
            walk.append((number, slope))
        return Improvement(losses, tuple(walk))


def check_probabilities(plan: Plan, count: int) -> None:
    """TrainingError unless the plan's probabilities, where it has any, are what they say."""
    if "probabilities" not in plan.tensors:
        return
    sent = plan.tensors["probabilities"]
    if sent.shape != (count,) or sent.dtype != torch.float32:
        raise TrainingError(
            f"the plan's probabilities are {tuple(sent.shape)} of {sent.dtype}, "
            f"not {(count,)} of torch.float32"
        )
    total = float(sent.double().sum())
    if bool((sent < 0).any()) or not abs(total - 1) <= SUM_TOLERANCE:
        raise TrainingError(
            f"the plan's probabilities are not non-negative numbers that sum to 1 (sum {total:g})"
        )
