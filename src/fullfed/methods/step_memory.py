"""What the server step's rule remembers: costs, gains and agreement of earlier rounds."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median_low, stdev

import torch

from fullfed.federation.messages import Update, Value, number, numbers

MEMORY = 0.5  # weight of earlier rounds in the agreement
LARGEST = 1e100  # of a measurement: products and sums of such are finite
NEWEST = 3  # rounds that are compared with each other before they enter the sums
FIRST_RANK = 1000.0  # before any measurement, and where costs cannot be told from nothing
_LARGEST_SHORT = torch.finfo(torch.float32).max
_SPIKE = 10.0  # times what is usual that a round's cost or gain counts for at most


@dataclass(frozen=True)
class StepMemory:
    """What the rule of the server step knows from earlier rounds: values of the last update.

    The rank is a ratio of sums over all rounds. A ratio for each round would be thrown about
    by rounds that gain little. A round enters the sums when ``NEWEST`` later ones are known, and
    with no more than ``_SPIKE`` times what is usual, so that a round that went wrong, or whose
    cohort lied, is outgrown.

    A cost is a small difference of losses, and may come out negative by their noise. While all
    costs together are no more than their standard error, the rank is at least what it is taken for
    before any measurement.

    Attributes:
        cost, gain: sums over all rounds but the newest.
        rounds: how many are in the sums.
        costs, gains: of the newest rounds, as they were measured; before them in time comes all
            that is in the sums.
        agreement: smoothed; by chance below 0 where clients have nothing in common.
    """

    cost: float = 0.0
    gain: float = 0.0
    rounds: float = 0.0
    costs: tuple[float, ...] = ()
    gains: tuple[float, ...] = ()
    agreement: float = 0.3

    @staticmethod
    def of(last: Update | None) -> StepMemory:
        if last is None:
            return StepMemory()
        cost, gain, rounds, agreement = (
            number(last, name) for name in ("cost", "gain", "rounds", "agreement")
        )
        costs, gains = numbers(last, "costs"), numbers(last, "gains")
        return StepMemory(cost, gain, rounds, tuple(costs), tuple(gains), agreement)

    def values(self) -> dict[str, Value]:
        """The values of an update from which ``of`` makes the state."""
        return {**asdict(self), "costs": list(self.costs), "gains": list(self.gains)}

    @property
    def is_possible(self) -> bool:
        """Whether rounds can have led to it, and what follows from it is finite."""
        sizes = map(abs, (self.cost, self.gain, self.agreement, *self.costs, *self.gains))
        return all(size <= LARGEST for size in sizes) and 0 <= self.rounds <= LARGEST

    @property
    def rank(self) -> float:
        if not self.rounds and not self.costs:
            return FIRST_RANK
        newest = self._usual(self.costs, self.cost)
        cost = self.cost + math.fsum(newest)
        gain = self.gain + math.fsum(self._usual(self.gains, self.gain))
        if gain <= 0:
            return LARGEST
        rank = min(max(cost, 0.0) / gain, LARGEST)
        deviation = stdev(newest) if len(newest) > 1 else 0.0
        error = deviation * math.sqrt(self.rounds + len(newest))
        return rank if cost > error else max(rank, FIRST_RANK)

    def agreeing(self, measured: float) -> float:
        """The agreement with one more round's measurement of it."""
        return MEMORY * self.agreement + (1 - MEMORY) * measured

    def adding(self, cost: float, gain: float, agreement: float) -> StepMemory:
        """The state after one more round."""
        costs, gains = (*self.costs, short(cost)), (*self.gains, short(gain))
        if len(costs) <= NEWEST:
            return replace(self, costs=costs, gains=gains, agreement=agreement)
        oldest = [self._usual(costs, self.cost)[0], self._usual(gains, self.gain)[0]]
        return StepMemory(
            self.cost + oldest[0],
            self.gain + oldest[1],
            self.rounds + 1,
            costs[1:],
            gains[1:],
            agreement,
        )

    def _usual(self, newest: Sequence[float], total: float) -> list[float]:
        """What the newest rounds count for: at most ``_SPIKE`` times, and below zero once, what is
        usual among them, or was in the rounds before, whichever is more. Zeros say nothing of that.
        """
        usual = abs(total) / self.rounds if self.rounds else 0.0
        if sizes := [abs(value) for value in newest if value]:
            usual = max(usual, median_low(sizes))
        return [min(max(value, -usual), _SPIKE * usual) for value in newest]


def short(value: float) -> float:
    """The nearest float32, of which a message has 4 bytes; of finite ones beyond it the largest."""
    if math.isinf(value):
        return value
    return ctypes.c_float(min(max(value, -_LARGEST_SHORT), _LARGEST_SHORT)).value
