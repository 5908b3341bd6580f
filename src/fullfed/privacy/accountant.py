"""How much privacy rounds of noise cost: (epsilon, delta) by dp-accounting's accountants."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import dp_accounting
from dp_accounting import pld

from fullfed.errors import UserError

_INTERVAL = 1e-3  # of the privacy losses that the accountant tells apart; rounding is upwards
_MOST_NOISE = 1e4
_CLOSE = 1.001  # how near the noise that is found is to the least


@dataclass(frozen=True)
class Account:
    """Rounds of a sum with Gaussian noise, of which each client (or record) is in some.

    Attributes:
        noise: its standard deviation as a multiple of what one can change in the sum.
        rate: with which each is in a round by itself, in secret (Poisson sampling); 1 where who is
            in a round may be known, or is not drawn so.
        delta: see PrivacyTable.
    """

    noise: float
    rate: float
    delta: float

    def epsilon(self, rounds: int) -> float:
        """After so many rounds, for neighbours that differ in the presence of one.

        Without sampling it is that of one Gaussian mechanism of noise / sqrt(rounds), exactly
        (Balle and Wang 2018, arXiv 1805.06530). With it, that of the privacy loss distribution,
        rounded upwards (Koskela et al. 2020, arXiv 1906.03049).
        """
        return _epsilon(self.noise, self.rate, self.delta, rounds) if rounds else 0.0


@functools.lru_cache(maxsize=1 << 12)
def _epsilon(noise: float, rate: float, delta: float, rounds: int) -> float:
    if rate == 1:
        return float(dp_accounting.get_epsilon_gaussian(noise / math.sqrt(rounds), delta))
    accountant = pld.PLDAccountant(value_discretization_interval=_INTERVAL)
    gaussian = dp_accounting.GaussianDpEvent(noise)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian), rounds)
    return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=1 << 12)
def noise_for(epsilon: float, delta: float, rate: float, rounds: int) -> float:
    """The least noise (see Account) with which so many rounds stay within epsilon, rounded up.

    Raises:
        UserError: there is none of any use.
    """
    low, high = 0.0, 1.0
    while _epsilon(high, rate, delta, rounds) > epsilon:
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise UserError(
                f"privacy.epsilon: {epsilon:g} over {rounds} rounds leaves nothing to learn; raise "
                "it, or take fewer rounds."
            )
    while low == 0.0 or high / low > _CLOSE:
        middle = (low + high) / 2
        if middle < 1e-2:
            break
        if _epsilon(middle, rate, delta, rounds) > epsilon:
            low = middle
        else:
            high = middle
    return high


# How many steps a client has made with each noise and rate (see Account).
Spent = Mapping[tuple[float, float], int]


def epsilon_of(spent: Spent, delta: float) -> float:
    """Of steps that are not all of one noise and rate; zero of none."""
    return _together(tuple(sorted(spent.items())), delta)


@functools.lru_cache(maxsize=1 << 12)
def _together(spent: tuple[tuple[tuple[float, float], int], ...], delta: float) -> float:
    if len(spent) <= 1:
        return next((Account(*kind, delta).epsilon(steps) for kind, steps in spent), 0.0)
    accountant = pld.PLDAccountant(value_discretization_interval=_INTERVAL)
    for (noise, rate), steps in spent:
        gaussian = dp_accounting.GaussianDpEvent(noise)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian), steps)
    return float(accountant.get_epsilon(delta))
