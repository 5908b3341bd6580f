"""The server step: how much of an update is applied. docs/server-step.md derives the rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.federation.messages import MessageError, Plan, Report, Update, Value, number
from fullfed.sketch import Purpose, Stream, perturb_
from fullfed.training.loss import answer_loss_value

_FIRST_RANK = 1000.0  # before anything was measured; it only sets the size of the first noise
_MEMORY = 0.5  # weight of earlier rounds in the logarithm of the rank
_LARGEST = 1e100  # of a measurement: products and sums of such are finite


@dataclass(frozen=True)
class Trained:
    """A client's visit between training and encoding; the model is as training left it.

    Attributes:
        model: holds the trained weights; a rule may change them, the visit restores them.
        before: the trained parameters' values at the start, by name.
        after: the parameters themselves, by name.
        batch: the first batch of the visit.
        first_loss: its loss before training.
    """

    model: PreTrainedModel
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    batch: Batch
    first_loss: float


class StepRule(Protocol):
    def measure(self, trained: Trained, plan: Plan, last: Update | None) -> dict[str, Value]:
        """What a client adds to its report for the rule; leaves the model at ``before``."""

    def check(self, report: Report) -> None:
        """Raise MessageError unless the report holds what ``measure`` adds."""

    def decide(self, reports: Sequence[Report], last: Update | None) -> dict[str, Value]:
        """The values an update carries for the rule: ``server_step`` and its memory.

        Reports come without tensors; ``last`` is the previous round's update.
        """


@dataclass(frozen=True)
class ConstantStep:
    """The same step in every round."""

    step: float

    def measure(self, trained: Trained, plan: Plan, last: Update | None) -> dict[str, Value]:
        return {}

    def check(self, report: Report) -> None:
        pass

    def decide(self, reports: Sequence[Report], last: Update | None) -> dict[str, Value]:
        return {"server_step": self.step}


@dataclass(frozen=True)
class CurvatureStep:
    """s = K / (K + r): the larger the task's effective rank r, the smaller the stable step.

    r = tr(H) ||delta||**2 / G sets what the noise of K coordinates costs in loss against the
    gain G of a whole step. Clients measure both on their first batch, for their own change:

    - G, the loss before training less that after;
    - tr(H), by adding noise of the size that is about to be added:
      (L(w + sigma z) + L(w - sigma z) - 2 L(w)) / sigma**2, z random signs.

    Attributes:
        seed: the recipe's, for z.
        coordinates: K.
    """

    seed: int
    coordinates: int

    def measure(self, trained: Trained, plan: Plan, last: Update | None) -> dict[str, Value]:
        after, before = list(trained.after.values()), list(trained.before.values())
        energy = sum(
            float((a.detach().float() - b.float()).square().sum())
            for a, b in zip(after, before, strict=True)
        )
        gain = trained.first_loss - answer_loss_value(trained.model, trained.batch)
        sigma = self._step(_rank(last)) * math.sqrt(energy / self.coordinates)
        stream = Stream(self.seed, Purpose.PROBE, plan.round, plan.client)
        cost = 0.0
        for signed in (sigma, -sigma):
            _copy(before, after)
            perturb_(after, stream, signed)
            cost += answer_loss_value(trained.model, trained.batch) - trained.first_loss
        _copy(before, after)
        return {"gain": gain, "noise_cost": cost / sigma**2 * energy if sigma > 0 else 0.0}

    def check(self, report: Report) -> None:
        for name in ("gain", "noise_cost"):
            if abs(number(report, name)) > _LARGEST:
                raise MessageError(f"the report's value {name!r} is larger than {_LARGEST:g}")

    def decide(self, reports: Sequence[Report], last: Update | None) -> dict[str, Value]:
        gain, cost = _mean(reports, "gain"), _mean(reports, "noise_cost")
        rank = _remember(cost / gain if gain > 0 else math.inf, last)
        return {"server_step": self._step(rank), "rank": rank}

    def _step(self, rank: float) -> float:
        return self.coordinates / (self.coordinates + rank)


def _rank(last: Update | None) -> float:
    return _FIRST_RANK if last is None else number(last, "rank")


def _remember(measured: float, last: Update | None) -> float:
    """The measured rank, smoothed over rounds in its logarithm.

    One round is noisy (a few samples a client), so it moves the rank by a factor of at most
    ten either way; in the first round there is nothing to smooth with but that bound.
    """
    known = _rank(last)
    bounded = min(max(measured, known / 10), known * 10)
    memory = 0.0 if last is None else _MEMORY
    return math.exp(memory * math.log(known) + (1 - memory) * math.log(bounded))


def _mean(reports: Sequence[Report], name: str) -> float:
    return math.fsum(number(report, name) for report in reports) / len(reports)


def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for from_, to in zip(source, target, strict=True):
            to.copy_(from_)
