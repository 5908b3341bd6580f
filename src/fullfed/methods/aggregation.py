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
from typing import Literal, Protocol

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.federation.messages import Report
from fullfed.methods.codecs.codec import Contribution


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

    def weight(self, report: Report) -> float:
        """How much a report counts, against others, where the rule only weighs."""
        return 1.0

    @abstractmethod
    def begin(self) -> Sum:
        """A new, empty sum."""

    def scalar(self, numbers: Sequence[float]) -> float:
        """One number of many clients', for what reports say beside their change."""
        return math.fsum(numbers) / len(numbers)

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

    def begin(self) -> RunningMean:
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
