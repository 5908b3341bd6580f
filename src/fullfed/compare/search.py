"""A short search for a learning rate: which rate to try next, from what was tried.

Rates lie on a logarithmic grid around a start. First the start and its two neighbours, a factor
of sqrt(10) away (what diverges at the start is not tried above it); then on in the better
direction until the best lies between two worse ones; then the wider gap beside the best is halved
for as long as the budget lasts. Every trial is spent, so methods that are given the same budget
use the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_STRIDE = 0.5  # decades between neighbours


@dataclass(frozen=True)
class Trial:
    """One short run.

    Attributes:
        learning_rate: that of the clients.
        loss: on the validation part, nats per answer token; None if there is none.
        reason: why there is none.
    """

    learning_rate: float
    loss: float | None
    reason: str | None = None


def next_rate(start: float, trials: Sequence[Trial]) -> float:
    """The learning rate to try after ``trials``, which this function chose one by one."""
    losses: dict[float, float] = {}
    for trial in trials:
        losses[_next_place(losses)] = _loss(trial)
    # Four digits are more than a search can tell apart, and can be read.
    return float(f"{start * 10 ** _next_place(losses):.4g}")


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the least loss; the lowest rate where none has one."""
    return min(trials, key=lambda trial: (_loss(trial), trial.learning_rate))


def _next_place(losses: Mapping[float, float]) -> float:
    """Where to look next, in decades from the start, given the losses at places seen."""
    if not losses:
        return 0.0
    if _STRIDE not in losses and math.isfinite(losses[0.0]):
        return _STRIDE
    if -_STRIDE not in losses:
        return -_STRIDE
    centre = min(losses, key=lambda place: (losses[place], place))
    below = max((place for place in losses if place < centre), default=None)
    above = min((place for place in losses if place > centre), default=None)
    if above is None:
        return centre + _STRIDE
    if below is None:
        return centre - _STRIDE
    # The wider gap; of two as wide, the one towards the better neighbour.
    upwards = (above - centre, -losses[above]) > (centre - below, -losses[below])
    return (centre + (above if upwards else below)) / 2


def _loss(trial: Trial) -> float:
    return math.inf if trial.loss is None else trial.loss
