"""Client-level differential privacy of sums: clipping, noise and account, which must agree.

A client's change counts with a norm of at most ``clip``, and the sum has Skellam noise, the
difference of two Poisson variables: integers, whose sums are Skellam again, so that clients can
add it in parts and nobody sees a sum without it (Agarwal et al. 2021, arXiv 2110.04995).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from randomgen import ChaCha

from fullfed.privacy.accountant import Account
from fullfed.privacy.integers import Grid
from fullfed.privacy.keystream import KeyStream

_FINENESS = 8.0  # units in the root mean square number of a change as long as the clip
_TAIL = 6.0  # times that, which a single number may be
_NOISE_TAIL = 9.0  # standard deviations of the noise of a sum: beyond are 2e-19
_MOST_NOISE = 1.5  # times the variance asked for, where no one of a cohort drops out
_WEIGHT = 0.1  # of the count of short changes in the sum, as a share of the clip
_RATE = 0.2  # of the clip towards the quantile (Andrew et al. 2021, section 3.1)
_ROUNDED_TRIES = 100


@dataclass(frozen=True)
class Mechanism:
    """One round's sum with noise, as the whole run has it.

    Skellam noise is accounted for as Gaussian noise of the same variance. With a standard deviation
    of s units, their Renyi divergences differ by a share of the order of 1 / s**2, and for few
    numbers of sqrt(K) / s**3 (Agarwal et al. 2021, theorem 3.5); s is over a hundred at the units
    that ``grid`` takes for some hundred numbers, and more for more.

    Attributes:
        account: the noise as a multiple of what one client can change in the sum, the rate at which
            clients are in a round, and delta.
        clip: the norm, of the first round where it follows a quantile.
        cohort: clients of a round, in the mean; the sum is divided by it.
        parts: of how many clients' noise a sum has enough; None where the server adds it.
        quantile: the share of changes to be no longer than the clip; None where it stays.
        epsilon: the budget; None where there is none.
        most_clients: that a sum is made for: of a larger one numbers would wrap around.
    """

    account: Account
    clip: float
    cohort: int
    parts: int | None
    quantile: float | None
    epsilon: float | None = None
    most_clients: int = 1

    def allows(self, rounds: int) -> bool:
        """Whether so many rounds stay within the budget."""
        return self.epsilon is None or self.account.epsilon(rounds) <= self.epsilon

    @property
    def extra(self) -> int:
        """Numbers that are in the sum beside the change's: the count of short changes."""
        return 0 if self.quantile is None else 1

    def grid(self, count: int, clip: float, bits: int, clients: int) -> Grid:
        """That of a sum of ``clients`` changes of ``count`` numbers.

        The unit is as fine as the bits allow for.
        """
        deviation = self.account.noise * clip * math.hypot(1, _WEIGHT) * math.sqrt(_MOST_NOISE)
        one = max(_TAIL * clip / math.sqrt(count), _WEIGHT * clip * self.extra)
        span = clients * one + _NOISE_TAIL * deviation
        unit = span / (2 ** (bits - 1) - 1 - clients)
        return Grid(unit, bits, math.ceil(one / unit))

    def fits(self, count: int, bits: int, clients: int) -> bool:
        """Whether so many bits lose nothing to speak of."""
        if 2 ** (bits - 1) - 1 <= clients:
            return False
        finest = self.clip / math.sqrt(count) / _FINENESS
        return self.grid(count, self.clip, bits, clients).unit <= finest

    def sensitivity(self, count: int, grid: Grid, clip: float) -> float:
        """The largest norm of one client's integers, in units: the clip, and what rounding adds."""
        longest = math.hypot(clip, _WEIGHT * clip * self.extra) / grid.unit
        numbers = count + self.extra
        return math.sqrt(longest**2 + numbers / 4 + longest + math.sqrt(numbers) / 2)

    def rounded(
        self, numbers: NDArray[np.float64], grid: Grid, clip: float, stream: KeyStream
    ) -> NDArray[np.int64]:
        """A client's integers, no longer than ``sensitivity``.

        Rounding at random makes them longer now and then; then it is done again (Kairouz et al.
        2021, arXiv 2102.06387, Algorithm 1, with beta = exp(-1/2)).
        """
        norm, count = float(np.linalg.norm(numbers)), len(numbers)
        short = numbers * min(1.0, clip / norm) if norm > 0 else numbers
        if self.quantile is not None:
            side = 1 if norm <= clip else -1
            short = np.append(short, side * _WEIGHT * clip)
        longest = self.sensitivity(count, grid, clip)
        for _ in range(_ROUNDED_TRIES):
            integers = grid.rounded(short, stream)
            if float(np.linalg.norm(integers.astype(np.float64))) <= longest:
                return integers
        return np.trunc(short / grid.unit).astype(np.int64)  # is never longer

    def noise(self, count: int, grid: Grid, clip: float, key: bytes) -> NDArray[np.int64]:
        """What one client adds, or the server: integers, shape (count + extra,)."""
        variance = self.variance(count, grid, clip) / (self.parts or 1)
        return skellam(variance, count + self.extra, key)

    def variance(self, count: int, grid: Grid, clip: float) -> float:
        """Of the noise of a sum, in units squared, that is accounted for."""
        return float((self.account.noise * self.sensitivity(count, grid, clip)) ** 2)

    def next_clip(self, clip: float, short: float) -> float:
        """The clip after a round in whose noisy sum the count of short changes is ``short``."""
        if self.quantile is None:
            return clip
        share = min(max((short / (_WEIGHT * clip * self.cohort) + 1) / 2, 0.0), 1.0)
        return clip * math.exp(-_RATE * (share - self.quantile))


def skellam(variance: float, count: int, key: bytes) -> NDArray[np.int64]:
    """Integers drawn as the difference of two Poisson variables of half the variance each, of the
    randomness of ChaCha20 with a key of 32 bytes."""
    generator = np.random.Generator(ChaCha(key=int.from_bytes(key, "little"), rounds=20))
    one, other = (generator.poisson(variance / 2, count) for _ in range(2))
    return np.asarray(one - other, dtype=np.int64)
