"""Which tensors are trained: those of large gradients, until the loss no longer falls (BlockLLM).

All of it is in the last update's values, so that everybody's next set is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Report, Update, Value, numbers
from fullfed.randomness import Purpose, Stream, permutation

SELECTED = "selected"  # in plans and updates: the numbers of the tensors of the set
SELECTION = "selection"  # in plans and updates: the number of the set, from 0
MEASURE = "measure"  # in plans: whether reports tell norms
NORMS = "norms"  # in reports and updates: float32 numbers, one a tensor, or nothing
VISITED, LOSSES = "visited", "losses"  # in updates
OF_PLANS = (SELECTED, SELECTION, MEASURE)
OF_UPDATES = (SELECTED, SELECTION, NORMS, VISITED, LOSSES)
_LARGEST = 1e30  # of a norm or a loss: means and ratios are finite
_COUNTED = 2**31


@dataclass(frozen=True)
class Selection:
    """The set of tensors of a round, and what the next set follows from.

    Attributes:
        number: how many sets there were before.
        chosen: the numbers of its tensors, in increasing order.
        visited: for each tensor of the model, in how many sets it has been, this one included.
        losses: of the newest rounds with this set, at most as many as the patience.
        norms: for each tensor of the model its gradient's, as the last round measured it; empty if
            it did not.
    """

    number: int
    chosen: tuple[int, ...]
    visited: tuple[int, ...]
    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()

    @staticmethod
    def of(update: Update) -> Selection:
        """That of a checked update's round."""
        chosen, visited = (tuple(map(int, numbers(update, n))) for n in (SELECTED, VISITED))
        losses, norms = tuple(numbers(update, LOSSES)), told_norms(update)
        return Selection(_whole(update, SELECTION), chosen, visited, losses, norms)

    def values(self) -> dict[str, Value]:
        """Those of an update."""
        return {
            SELECTED: list(self.chosen),
            SELECTION: self.number,
            VISITED: list(self.visited),
            LOSSES: list(self.losses),
            NORMS: packed(self.norms),
        }

    def plan_values(self, measure: bool) -> dict[str, Value]:
        """Those of a plan of the round."""
        return {SELECTED: list(self.chosen), SELECTION: self.number, MEASURE: measure}

    def after(self, loss: float, norms: Sequence[float], patience: int) -> Selection:
        """What is known of the set after a round.

        Args:
            loss: the clients' mean.
            norms: of the tensors' gradients, by the mean over clients; none if not measured.
        """
        return replace(self, losses=(*self.losses, loss)[-patience:], norms=tuple(norms))


@dataclass(frozen=True)
class SelectionRule:
    """How sets are chosen.

    Attributes:
        seed: the recipe's.
        sizes: of the model's tensors, in elements.
        budget: how many elements a set may have.
        patience: m, rounds.
    """

    seed: int
    sizes: tuple[int, ...]
    budget: int
    patience: int

    @property
    def first(self) -> Selection:
        """The first set, at random: no gradient is known. The next round has another."""
        nothing = Selection(-1, (), (0,) * len(self.sizes))
        order = permutation(Stream(self.seed, Purpose.TENSORS), len(self.sizes)).tolist()
        return self._chosen(nothing, order)

    def next(self, known: Selection) -> Selection:
        """The set of the round after one of which this is known.

        It is another one if the last loss is no less than the mean of the last m (paper, Algorithm
        1). Tensors are taken in decreasing order of ||g_l|| / f_l, where f_l is the share of sets
        in which tensor l has been, counting one set of everything.
        """
        if not self.is_due(known):
            return known
        share = [(1 + count) / (2 + known.number) for count in known.visited]
        scores = [norm / f for norm, f in zip(known.norms, share, strict=True)]
        order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
        return self._chosen(known, order)

    def is_due(self, known: Selection) -> bool:
        """Whether the set is to be another one."""
        losses = known.losses
        if not known.norms:
            return False
        full = len(losses) == self.patience and losses[-1] >= math.fsum(losses) / len(losses)
        return known.number == 0 or full

    def measures(self, chosen: Selection) -> bool:
        """Whether another set may follow on the round of this one, and so norms are needed."""
        return chosen.number == 0 or len(chosen.losses) + 1 >= self.patience

    def _chosen(self, known: Selection, order: Sequence[int]) -> Selection:
        """Those first in order that fit into the budget together; the first of all if none does."""
        chosen, left = list[int](), self.budget
        for n in order:
            if self.sizes[n] <= left:
                chosen.append(n)
                left -= self.sizes[n]
        chosen = sorted(chosen or order[:1])
        own = set(chosen)
        visited = tuple(count + (n in own) for n, count in enumerate(known.visited))
        return Selection(known.number + 1, tuple(chosen), visited)

    def check_set(self, message: Plan | Update) -> None:
        """
        Raises:
            MessageError: the message does not name a set that can be, and its number.
        """
        chosen, number = message.values[SELECTED], message.values[SELECTION]
        own = [n for n in chosen if type(n) is int] if isinstance(chosen, list) else []
        increasing = all(a < b for a, b in pairwise(own))
        if not own or own != chosen or not increasing or not 0 <= own[0] <= own[-1] < self.count:
            raise MessageError(f"the {message.kind} does not name tensors of {self.count}")
        if len(own) > 1 and sum(self.sizes[n] for n in own) > self.budget:
            raise MessageError(f"the {message.kind} names more tensors than the method allows")
        if type(number) is not int or not 0 <= number < _COUNTED:
            raise MessageError(f"the {message.kind} does not say which set of tensors it has")

    @property
    def count(self) -> int:
        """How many tensors the model has."""
        return len(self.sizes)

    def check_norms(self, message: Report | Update, told: bool | None) -> None:
        """
        Args:
            told: whether there are to be norms; None where both may be.

        Raises:
            MessageError: there are none that can be.
        """
        found = told_norms(message)
        if told is None:
            told = bool(found)
        if len(found) != told * self.count or not all(0 <= norm <= _LARGEST for norm in found):
            raise MessageError(f"the {message.kind} does not tell a norm of each tensor")

    def check_update(self, update: Update) -> None:
        """
        Raises:
            MessageError: the update's values cannot be of a selection.
        """
        self.check_set(update)
        self.check_norms(update, None)
        visited, losses = update.values[VISITED], numbers(update, LOSSES)
        counts = isinstance(visited, list) and all(
            type(n) is int and 0 <= n < _COUNTED for n in visited
        )
        if not counts or len(numbers(update, VISITED)) != self.count:
            raise MessageError("the update does not say how often each tensor was trained")
        possible = all(abs(loss) <= _LARGEST for loss in losses)
        if not 1 <= len(losses) <= self.patience or not possible:
            raise MessageError("the update does not hold the losses of the newest rounds")


def packed(norms: Sequence[float]) -> bytes:
    """Numbers as a message has them."""
    return np.asarray(norms, dtype="<f4").tobytes()


def told_norms(message: Report | Update) -> tuple[float, ...]:
    """The norms that a message tells.

    Raises:
        MessageError: they are no numbers.
    """
    found = message.values.get(NORMS)
    if not isinstance(found, bytes) or len(found) % 4:
        raise MessageError(f"the {message.kind}'s norms are no numbers of 32 bits")
    return tuple(np.frombuffer(found, dtype="<f4").tolist())


def _whole(update: Update, name: str) -> int:
    """A checked update's whole number."""
    value = update.values[name]
    assert isinstance(value, int)
    return value
