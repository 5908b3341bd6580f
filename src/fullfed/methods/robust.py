"""Aggregation rules that bound what lying clients can do to the result.

They hold all contributions of a part until the last has come, and weigh clients alike, whatever
samples a client claims, but for the clipped mean. The distances that they ask for are those of
coordinates where clients share directions: n^2 K numbers are looked at, not n^2 d.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median, median_low

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.federation.messages import Report
from fullfed.methods.aggregation import Aggregation, Measured, Sum, WeightedMean, left_out
from fullfed.methods.codecs.codec import Contribution
from fullfed.methods.codecs.products import Products, products_of

_LONG = 1.5  # times the median length: what honest clients who have unlike data seldom reach
_AGAINST = 0.05  # a cosine: what such clients seldom have, the other way, with all others together
_SURE = 3.0  # standard deviations of a cosine by chance
_FEWEST = 3  # changes that can be compared
_ROUNDS, _SETTLED = 1000, 1e-9  # of Weiszfeld's algorithm: at most, and the change that ends it


Weigh = Callable[[Sequence[Report], Sequence[Contribution]], list[float]]


class HeldContributions:
    """All contributions, until what each counts for can be found.

    Args:
        weigh: finds it.
    """

    def __init__(self, weigh: Weigh) -> None:
        self._weigh = weigh
        self._reports: list[Report] = []
        self._all: list[Contribution] = []

    def add(self, report: Report, contribution: Contribution) -> None:
        self._reports.append(report)
        self._all.append(contribution)

    def result(self) -> Contribution:
        weights = self._weigh(self._reports, self._all)
        counting = [(w, c) for w, c in zip(weights, self._all, strict=True) if w]
        first = self._all[0]
        return Contribution(
            {name: _sum((w, c.tensors[name]) for w, c in counting) for name in first.tensors},
            math.fsum(w**2 * c.noise for w, c in counting),
            {name: _sum((1.0, c.sums[name]) for _, c in counting) for name in first.sums},
            tuple(r.client for w, r in zip(weights, self._reports, strict=True) if not w),
        )


def gram(contributions: Sequence[Contribution]) -> Tensor:
    """<x_i - x_0, x_j - x_0> of contributions: float64, shape (n, n).

    Weights differ little from client to client: distances from one of them lose no digits.
    """
    total = torch.zeros(len(contributions), len(contributions), dtype=torch.float64)
    for name, origin in contributions[0].tensors.items():
        rows = torch.stack([(c.tensors[name] - origin).double().flatten() for c in contributions])
        total += (rows @ rows.T).cpu()
    return total


def _sum(weighted: Iterable[tuple[float, Tensor]]) -> Tensor:
    (weight, first), *others = weighted
    total = first * weight
    for weight, tensor in others:
        total.add_(tensor, alpha=weight)
    return total


def _squared_distances(products: Tensor) -> Tensor:
    squares = products.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * products).clamp_(min=0)


@dataclass(frozen=True)
class MultiKrum(Aggregation):
    """The mean of the reports that lie closest to their neighbours (Blanchard et al. 2017,
    "Machine learning with adversaries", section 4; the neighbours of a report are the n - f that
    are nearest to it, itself among them, as in Farhadkhani et al. 2022, arXiv 2205.12173).

    Attributes:
        liars (share): f, of the reports, rounded down, but at least one.
    """

    liars: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.liars < 0.5:
            raise ValueError("liars is a share above 0 and below 0.5")

    def begin(self) -> Sum:
        return HeldContributions(lambda reports, held: self.weights(gram(held)))

    def weights(self, products: Tensor) -> list[float]:
        """What each of n reports counts for, of ``gram``'s products."""
        count = len(products)
        self.check(count)
        kept = count - left_out(self.liars, count)
        nearest = _squared_distances(products).sort(dim=1).values[:, :kept]
        # Of equal scores the first client's counts as smaller, on every machine.
        chosen = set(nearest.sum(dim=1).argsort(stable=True)[:kept].tolist())
        return [1 / kept if number in chosen else 0.0 for number in range(count)]

    def check(self, clients: int) -> None:
        if 2 * left_out(self.liars, clients) >= clients:
            raise UserError(
                "aggregation.name: krum leaves out those who stand apart from the others, and "
                f"{clients} of the same parameters are too few; have at least 3 clients train "
                "them, or take aggregation.name = 'mean'."
            )


@dataclass(frozen=True)
class GeometricMedian(Aggregation):
    """The point whose distances from all reports have the least sum (Pillutla et al. 2022, "Robust
    aggregation for federated learning", arXiv 1912.13445), by Weiszfeld's algorithm, whose points
    are all means of reports: it needs their inner products alone."""

    def begin(self) -> Sum:
        return HeldContributions(lambda reports, held: self.weights(gram(held)))

    def weights(self, products: Tensor) -> list[float]:
        """What each of n reports counts for, of ``gram``'s products."""
        count = len(products)
        report = _median_report(products)
        if report is not None:
            return [1.0 if number == report else 0.0 for number in range(count)]
        weights = torch.full((count,), 1 / count, dtype=torch.float64)
        nearest = float(products.diagonal().max()) * _SETTLED**2  # no division by zero
        for _ in range(_ROUNDS):
            inner = products @ weights
            squares = products.diagonal() - 2 * inner + weights @ inner
            closeness = squares.clamp(min=nearest).rsqrt()
            moved = closeness / closeness.sum()
            if float((moved - weights).abs().max()) < _SETTLED:
                break
            weights = moved
        found: list[float] = weights.tolist()
        return found


def _median_report(products: Tensor) -> int | None:
    """The number of a report that is the geometric median itself, if one is: the unit vectors to it
    from all others have a sum no longer than as many of it as there are (Vardi and Zhang 2000).
    Weiszfeld's algorithm comes near it too slowly."""
    squares = _squared_distances(products)
    for number in range(len(products)):
        apart = squares[number] > squares.max() * _SETTLED**2
        unit = torch.zeros_like(squares[number])
        unit[apart] = squares[number][apart].rsqrt()
        # <x_k - x_i, x_k - x_j> of all i and j, k being the number.
        row = products[number]
        inner = products[number, number] - row[None, :] - row[:, None] + products
        pull = float(unit @ inner @ unit)
        if pull <= float((~apart).sum()) ** 2:
            return number
    return None


@dataclass(frozen=True)
class ClippedMean(WeightedMean):
    """The mean of changes, of which long ones count less, and those that pull against the others
    nothing: sum_i w_i c_i x_i / sum_i w_i c_i, c_i = min(1, (1.5 m / |x_i|)**2), m the cohort's
    lower median length (one step, from zero, of a redescending estimate of a location), or 0 of
    those that are ``opposed``.

    So nobody pulls with more than 1.5 m, and the longer a lie the less; where some honest changes
    are long the mean is no shorter for it. Lengths are told with each client's own directions, too;
    how changes lie to each other only where there are coordinates enough.
    """

    @property
    def needs_changes(self) -> bool:
        return True

    def shares(self, reports: Sequence[Report], measured: Measured) -> list[float]:
        norms = measured.norms()
        most = _LONG * median_low(norms)
        counted = [
            share * ((most / norm) ** 2 if norm > most else 1.0)
            for share, norm in zip(super().shares(reports, measured), norms, strict=True)
        ]
        products = measured.products() if len(reports) >= _FEWEST else None
        for number in opposed(products, counted) if products else ():
            counted[number] = 0.0
        # Less than half is counted only where few clients weigh most: they are not made up for.
        total = max(math.fsum(counted), 0.5)
        return [share / total for share in counted]

    def begin(self) -> Sum:
        return HeldContributions(lambda reports, held: self.shares(reports, _Decoded(held)))


@dataclass(frozen=True)
class _Decoded:
    """What is measured of changes that are decoded: see ``Measured``."""

    changes: Sequence[Contribution]

    def norms(self) -> list[float]:
        return [
            math.sqrt(math.fsum(float(t.double().square().sum()) for t in c.tensors.values()))
            for c in self.changes
        ]

    def products(self) -> Products:
        return products_of(self.changes)


def opposed(products: Products, weights: Sequence[float]) -> list[int]:
    """Which changes pull against the others, in the order in which they are found.

    One does if it lies against the weighted sum of the others, by a cosine that honest clients
    seldom have and that chance does not make, and against at least half of the others, too (which
    few who say the same together cannot bring about). Who lies most against their sum is left out
    first, and the rest are looked at anew; fewer than half are left out in all. (Which cosines
    decide is ours; that they can, beside lengths, is Cao et al. 2021, FLTrust, arXiv 2012.13995,
    who compare with a change of the server's own.)
    """
    inner, found = products.inner, list[int]()
    most = max(_AGAINST, _SURE * products.chance)
    kept = torch.tensor(weights, dtype=torch.float64)
    while 2 * (len(found) + 1) < len(kept):
        cosines = _with_the_others(inner, kept)
        against = ((inner < 0) & (kept > 0)).sum(dim=1)
        others = int((kept > 0).sum()) - 1
        cosines[(kept == 0) | (2 * against < others)] = 0.0
        worst = int(cosines.argmin())
        if float(cosines[worst]) >= -most:
            break
        found.append(worst)
        kept[worst] = 0.0
    return found


def _with_the_others(inner: Tensor, weights: Tensor) -> Tensor:
    """The cosine of each change with the weighted sum of all others; 0 where one has no length."""
    own, sums = inner.diagonal(), inner @ weights
    product = sums - weights * own
    squares = weights @ sums - 2 * weights * sums + weights.square() * own
    lengths = (own * squares.clamp(min=0)).sqrt()
    return torch.where(lengths > 0, product / lengths, 0.0)


@dataclass(frozen=True)
class CoordinateMedian(Aggregation):
    """For each number the clients' median; of an even number of clients the mean of the two in the
    middle (Yin et al. 2018, arXiv 1803.01498, definition 1)."""

    def begin(self) -> Sum:
        return MiddleNumbers()

    def scalar(self, numbers: Sequence[float]) -> float:
        return float(median(numbers))


class MiddleNumbers:
    """All contributions, until their middle can be found number by number."""

    def __init__(self) -> None:
        self._all: list[Contribution] = []

    def add(self, report: Report, contribution: Contribution) -> None:
        self._all.append(contribution)

    def result(self) -> Contribution:
        count = len(self._all)
        return Contribution(
            {name: _middle([c.tensors[name] for c in self._all]) for name in self._all[0].tensors},
            # The variance of the median of n normal numbers is pi/2 times that of their mean.
            math.pi / 2 * math.fsum(c.noise for c in self._all) / count**2,
            {
                name: count * _middle([c.sums[name].double() for c in self._all])
                for name in self._all[0].sums
            },
        )


def _middle(tensors: Sequence[Tensor]) -> Tensor:
    rows, count = torch.stack(list(tensors)).sort(dim=0).values, len(tensors)
    return (rows[(count - 1) // 2] + rows[count // 2]) / 2
