"""Aggregation: how the server makes one contribution of many.

A rule begins anew for every part of the model in every round. It sees what codecs decode
(``Contribution``), and the scalars that reports carry beside it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import median
from typing import Literal, Protocol

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.federation.messages import Report
from fullfed.methods.codecs.codec import Codec, Contribution
from fullfed.methods.codecs.products import Products

_NEAR = 5.0  # times the median distance from the median: 3.4 standard deviations if normal


def mean_near_median(numbers: Sequence[float]) -> float:
    """The mean of numbers none of which counts as further from their median than ``_NEAR`` times
    the median distance from it (winsorised: Tukey 1962).

    So it is the plain mean where no number stands apart, and no single one of three or more moves
    it far.
    """
    middle = median(numbers)
    most = _NEAR * median(abs(number - middle) for number in numbers)
    return math.fsum(min(max(n, middle - most), middle + most) for n in numbers) / len(numbers)


def left_out(share: float, clients: int) -> int:
    """A share of clients, rounded down, but at least one."""
    # As written: in binary 0.29 of 100 is below 29.
    return max(int(Decimal(str(share)) * clients), 1)


class Measured(Protocol):
    """What a rule that only weighs can ask of a part's changes in one round."""

    def norms(self) -> Sequence[float]:
        """Their lengths."""

    def products(self) -> Products | None:
        """How they lie to each other; None where reports cannot be compared."""


class Sum(Protocol):
    """One part's contributions in one round."""

    def add(self, report: Report, contribution: Contribution) -> None:
        """The next client's, in increasing order of clients."""

    def result(self) -> Contribution:
        """What they came to; there was at least one."""


class Aggregation(ABC):
    @property
    def weights_only(self) -> bool:
        """Whether the result is the sum of reports times their weights, so that a codec may send
        that without decoding them (``Codec.stacks``). Others need ``Codec.comparable``."""
        return False

    @property
    def needs_changes(self) -> bool:
        """Whether the rule asks how large a contribution is, or how far from another: then it
        needs codecs that decode what changed, not the weights themselves."""
        return False

    @property
    def votes(self) -> bool:
        """Whether the rule counts bits, which it needs a codec of (``Codec.votes``)."""
        return False

    def coding(self, codec: Codec) -> Codec:
        """The codec as the rule has clients use it."""
        return codec

    def weight(self, report: Report) -> float:
        """How much a report counts, against others, where the rule only weighs."""
        return 1.0

    def shares(self, reports: Sequence[Report], measured: Measured) -> list[float]:
        """What each report counts for in a sum, where the rule only weighs.

        Args:
            measured: the reports' changes, in their order.
        """
        weights = [self.weight(report) for report in reports]
        total = math.fsum(weights)
        return [weight / total for weight in weights]

    @abstractmethod
    def begin(self) -> Sum:
        """A new, empty sum."""

    def scalar(self, numbers: Sequence[float]) -> float:
        """One number of many clients', for what reports say beside their change."""
        return mean_near_median(numbers)

    def check_codec(self, codec: Codec) -> None:
        """
        Raises:
            UserError: the rule cannot work with what the codec decodes.
        """
        if self.votes and not codec.votes:
            raise UserError(
                "aggregation.name: a majority vote counts one bit of each coordinate on shared "
                "directions; take a sketch with coordinates, bits = 1 and seeds = 'shared', or "
                "another rule."
            )
        if not codec.comparable and not self.weights_only:
            raise UserError(
                "aggregation.name: this rule compares clients number by number, which reports on "
                "each client's own directions, factors or seeds do not allow; take seeds = "
                "'shared' for a sketch, another codec, or aggregation.name = 'mean'."
            )
        if codec.sends_weights and self.needs_changes:
            raise UserError(
                "codec: this rule measures how large changes are, and the codec sends the weights "
                "themselves; take codec.precision = 'bfloat16' or another codec."
            )

    def check(self, clients: int) -> None:  # noqa: B027 (nothing to check)
        """
        Args:
            clients: the fewest that are to train the same part in a round.

        Raises:
            UserError: the rule cannot work with so few.
        """


@dataclass(frozen=True)
class WeightedMean(Aggregation):
    """sum_i n_i x_i / sum_i n_i (McMahan et al. 2017, arXiv 1602.05629, Algorithm 1).

    Attributes:
        weights: whether a report counts as its client's "samples" or all are "equal".
    """

    weights: Literal["samples", "equal"] = "samples"

    @property
    def weights_only(self) -> bool:
        return True

    def weight(self, report: Report) -> float:
        return float(report.samples) if self.weights == "samples" else 1.0

    def begin(self) -> Sum:
        return RunningMean(self)


class RunningMean:
    """A mean that holds one contribution, however many come; of one client it is exact."""

    def __init__(self, rule: WeightedMean) -> None:
        self._rule = rule
        self._total = self._noise = 0.0
        self._mean: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def add(self, report: Report, contribution: Contribution) -> None:
        weight = self._rule.weight(report)
        self._total += weight
        self._noise += weight**2 * contribution.noise
        for name, tensor in contribution.tensors.items():
            if name in self._mean:
                self._mean[name].lerp_(tensor, weight / self._total)
            else:
                self._mean[name] = tensor.clone()
        for name, tensor in contribution.sums.items():
            self._sums[name] = self._sums[name] + tensor if name in self._sums else tensor

    def result(self) -> Contribution:
        return Contribution(self._mean, self._noise / self._total**2, self._sums)


@dataclass(frozen=True)
class TrimmedMean(Aggregation):
    """For each number the mean of the clients' without the smallest and the largest ones (Yin et
    al. 2018, "Byzantine-robust distributed learning", arXiv 1803.01498, definition 2).

    Reports weigh alike, whatever samples a client claims. All of a part's are held until the last
    has come.

    Attributes:
        trim (share): of reports left out at either end, rounded down, but at least one.
    """

    trim: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.trim < 0.5:
            raise ValueError("trim is a share above 0 and below 0.5")

    def begin(self) -> SortedNumbers:
        return SortedNumbers(self)

    def scalar(self, numbers: Sequence[float]) -> float:
        kept = sorted(numbers)[self.left_out(len(numbers)) :][: self.kept(len(numbers))]
        return math.fsum(kept) / len(kept)

    def left_out(self, clients: int) -> int:
        """How many numbers are left out at either end; one at least, whoever drops out."""
        return left_out(self.trim, clients)

    def kept(self, clients: int) -> int:
        """How many numbers are averaged."""
        return clients - 2 * self.left_out(clients)

    def mean(self, tensors: Sequence[Tensor]) -> Tensor:
        """The trimmed mean of tensors of one shape, number by number."""
        rows = torch.stack(list(tensors)).sort(dim=0).values
        return rows[self.left_out(len(rows)) :][: self.kept(len(rows))].mean(dim=0)

    def check(self, clients: int) -> None:
        if self.kept(clients) < 1:
            raise UserError(
                "aggregation.name: a trimmed mean leaves out the smallest and the largest of the "
                f"clients' numbers, and {clients} of the same parameters are too few; have at "
                "least 3 clients train them, or take aggregation.name = 'mean'."
            )


class SortedNumbers:
    """All contributions, until they are sorted number by number."""

    def __init__(self, rule: TrimmedMean) -> None:
        self._rule = rule
        self._all: list[Contribution] = []

    def add(self, report: Report, contribution: Contribution) -> None:
        self._all.append(contribution)

    def result(self) -> Contribution:
        rule, count = self._rule, len(self._all)
        rule.check(count)
        return Contribution(
            {
                name: rule.mean([c.tensors[name] for c in self._all])
                for name in self._all[0].tensors
            },
            # As if each of those kept were a whole client's: which ones are differs by number.
            math.fsum(c.noise for c in self._all) / count / rule.kept(count),
            {
                name: count * rule.mean([c.sums[name].double() for c in self._all])
                for name in self._all[0].sums
            },
        )
