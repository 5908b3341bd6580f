"""The truncated normal distribution, from series of exactly rounded operations.

With a = 1 / sqrt(d) the entries of a dense basis are N(0, 1) truncated to [-a, a]
(Ferret, arXiv 2409.06277, section 3.2). Everything here is float64 arithmetic with +, *, /
and sqrt alone, so that every machine obtains the same constants.
"""

from __future__ import annotations

import functools
import math

import numpy as np


def _moment(d: int, power: int) -> float:
    """Integral of x**power exp(-x**2 / 2) from 0 to 1 / sqrt(d), divided by d**(-(power + 1) / 2).

    An alternating series in 1 / (2 d): 20 terms leave less than 2**-80.
    """
    total, term = 0.0, 1.0
    for n in range(20):
        total += term / (2 * n + power + 1)
        term *= -1.0 / (2.0 * d * (n + 1))
    return total


@functools.cache
def second_moment(d: int) -> float:
    """rho = E[v**2] of an entry, the paper's rho; 1 / rho = 3 d + 0.4 + O(1 / d)."""
    return _moment(d, 2) / (_moment(d, 0) * d)


@functools.cache
def inverse_cdf(d: int) -> tuple[float, ...]:
    """Float32 coefficients A_0, A_1, ... with v = u (A_0 + u**2 (A_1 + u**2 (A_2 + ...))).

    u uniform on (-1, 1) gives v truncated normal on (-1 / sqrt(d), 1 / sqrt(d)): the Maclaurin
    series of the normal quantile in z = u * integral of exp(-x**2 / 2) from 0 to 1 / sqrt(d).
    Terms below 2**-27 of the first are left out.
    """
    reach = _moment(d, 0) / math.sqrt(d)
    factors, coefficients = [1.0], [reach]
    power = reach
    while coefficients[-1] >= coefficients[0] * 2.0**-27:
        k = len(factors)
        factors.append(
            sum(factors[m] * factors[k - 1 - m] / ((m + 1) * (2 * m + 1)) for m in range(k))
        )
        power *= reach * reach / 2.0
        coefficients.append(factors[k] / (2 * k + 1) * power)
    return tuple(float(np.float32(value)) for value in coefficients[:-1])
