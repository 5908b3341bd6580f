"""How random bits become signs and normal numbers, element by element: the NumPy reference.

It reads like docs/shared-randomness.md, sections 2 to 4, and kernels make the same numbers: every
operation is one IEEE operation, rounded to nearest even and not fused with another.

Elements stand in rows. The 128 bits of one Philox output serve one column of consecutive rows: 128
signs, 8 numbers of 16 bits, or 4 words. So a row needs only the outputs of its own columns, a
kernel uses each output for as many rows as it has parts, and neighbouring lanes read neighbouring
memory.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fullfed.randomness import Stream

Float32s = NDArray[np.float32]

LANES = 128  # elements in a row of a dense basis or a direction
FOLD = 128  # rows whose sum is one partial sum


def fields(stream: Stream, bits: int, width: int, first: int, rows: int) -> NDArray[np.uint32]:
    """The numbers of ``bits`` bits of rows first, first + 1, ..., uint32, shape (rows, width).

    With n = 128 / bits parts to an output, row q and column c own part q mod n of output
    (q div n) * width + c. Part p is the bits p * bits, p * bits + 1, ... of the output's four
    words, least significant first.
    """
    parts = 128 // bits
    group, end = first // parts, -(-(first + rows) // parts)
    words = stream.words(4 * width * (end - group), 4 * width * group)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    mask = np.uint32((1 << bits) - 1)
    split = (words.reshape(-1, width, 4, 1) >> shifts) & mask
    in_rows = np.moveaxis(split.reshape(-1, width, parts), 1, 2).reshape(-1, width)
    return in_rows[first - group * parts :][:rows]


def row_signs(
    stream: Stream, width: int, depth: int, counters: int, first: int, rows: int
) -> NDArray[np.uint32]:
    """The sign bits of rows first, first + 1, ... of a sign basis, uint32, shape (rows, width).

    An output serves ``depth`` rows. If that is less than 128, no row is beyond it, and an output
    serves 128 / depth columns: column c of row q owns bit depth * (c div counters) + q of output
    c mod counters.
    """
    if depth == FOLD:
        return fields(stream, 1, width, first, rows)
    bits = fields(stream, 1, counters, 0, 128).reshape(-1, depth, counters)
    return bits.swapaxes(0, 1).reshape(depth, -1)[first : first + rows, :width]


def rotations(stream: Stream, width: int, first: int, rows: int) -> NDArray[np.int64]:
    """How far rows first, first + 1, ... are rotated, int64, shape (rows,), in [0, width)."""
    words = stream.words(rows, first).astype(np.uint64)
    return ((words * np.uint64(width)) >> np.uint64(32)).astype(np.int64)


# Polynomials of least largest error (our fits), lowest power first, g in (0, 1], u in (-1, 1).
LOGARITHM = (  # -2 (log(1 - g / 2) + g log(2)) / g
    -0.386293390,
    0.249908372,
    0.0847277550,
    0.0234415439,
    0.0326715840,
    -0.0199350569,
    0.0154778466,
)
# In u**2; larger by 2.6e-6, so that the second moment is 1 though there are 2**16 radii only.
COSINE = (1.00000260, -1.23370148, 0.253651415, -0.0208106825, 0.000858192889)  # cos(u pi / 2)
SINE = (1.57079516, -0.645894560, 0.0794345500, -0.00433311000)  # sin(u pi / 2) / u
OCTAVES = 2 * 0.69314718056 * 2.0**-23  # 2 log(2), over what a float's bits grow by in an octave
TOP = 0x48000000  # the bits of 2**17


@dataclass(frozen=True)
class Entries:
    """How the numbers of a direction are made.

    Attributes:
        bits: 1 for signs, 16 for truncated normals and for normals.
        series: the coefficients of ``inverse_cdf`` for truncated normals, else empty.
    """

    bits: int
    series: tuple[float, ...] = ()

    @property
    def parts(self) -> int:
        """Rows served by one Philox output."""
        return 128 // self.bits

    def values(self, stream: Stream, first: int, rows: int) -> Float32s:
        """Rows first, first + 1, ... of the stream's numbers, float32, shape (rows, LANES)."""
        if self.bits == 1:
            return signs(fields(stream, 1, LANES, first, rows))
        if self.series:
            return truncated_normals(fields(stream, 16, LANES, first, rows), self.series)
        pair, last = first // 2, (first + rows + 1) // 2
        pairs = normals(fields(stream, 32, LANES, pair, last - pair))
        return pairs.reshape(-1, LANES)[first - 2 * pair :][:rows]


SIGNS = Entries(bits=1)
NORMALS = Entries(bits=16)


def truncated(d: int) -> Entries:
    """Normals truncated to (-1 / sqrt(d), 1 / sqrt(d)): Ferret, arXiv 2409.06277, section 3.2."""
    return Entries(bits=16, series=inverse_cdf(d))


def signs(bits: NDArray[np.uint32]) -> Float32s:
    """+1 for 0 and -1 for 1."""
    return np.float32(1) - np.float32(2) * bits.astype(np.float32)


def polynomial(coefficients: tuple[float, ...], x: Float32s) -> Float32s:
    """Horner's rule; coefficients lowest power first."""
    total: Float32s = np.full_like(x, np.float32(coefficients[-1]))
    for coefficient in coefficients[-2::-1]:
        total = total * x + np.float32(coefficient)
    return total


def truncated_normals(halves: NDArray[np.uint32], series: tuple[float, ...]) -> Float32s:
    """From 16-bit numbers h: u = (2 h - 65535) / 65536, then the series of ``inverse_cdf``."""
    u = (2 * halves.astype(np.int32) - 65535).astype(np.float32) * np.float32(2.0**-16)
    return polynomial(series, u * u) * u


def normals(words: NDArray[np.uint32]) -> Float32s:
    """Two from each 32-bit word, shape (n, 2, ...) from words (n, ...): Box and Muller 1958.

    16 bits for the radius, one for its sign, 15 for an angle in the half circle around 0.
    """
    size = radius(words)
    r: Float32s = np.where(words & np.uint32(1) == 1, -size, size)
    angle = ((words >> np.uint32(1)) & np.uint32(0x7FFF)).astype(np.int32)
    u = (2 * angle - 32767).astype(np.float32) * np.float32(2.0**-15)
    return np.stack([r * polynomial(COSINE, u * u), r * (u * polynomial(SINE, u * u))], axis=1)


def radius(words: NDArray[np.uint32]) -> Float32s:
    """sqrt(-2 log t), t = (2 h + 1) / 2**17 with h the upper 16 bits: 2**-k (1 - g / 2)."""
    bits = (2 * (words >> np.uint32(16)) + 1).astype(np.float32).view(np.int32)
    octaves = (np.int32(TOP) - bits).astype(np.float32)  # 2**23 (k + g)
    mantissa = (bits & np.int32(0x7FFFFF)) + np.int32(0x3F800000)
    g = np.float32(2) - mantissa.view(np.float32)
    root: Float32s = np.sqrt(octaves * np.float32(OCTAVES) + g * logarithm(g))
    return root


def logarithm(g: Float32s) -> Float32s:
    """The polynomial LOGARITHM, in an order of operations that processors can overlap."""
    low, middle, high = (polynomial(LOGARITHM[n : n + 2], g) for n in (0, 2, 4))
    square = g * g
    high += np.float32(LOGARITHM[6]) * square
    middle *= square
    high *= square * square
    high += middle + low
    return high


def _moment(d: int, power: int) -> float:
    """Integral of x**power exp(-x**2 / 2) from 0 to 1 / sqrt(d), divided by d**(-(power + 1) / 2).

    An alternating series in 1 / (2 d): 20 terms leave less than 2**-80. All its operations are
    float64 +, * and /, so that every machine obtains the same number.
    """
    total, term = 0.0, 1.0
    for n in range(20):
        total += term / (2 * n + power + 1)
        term *= -1.0 / (2.0 * d * (n + 1))
    return total


@functools.cache
def second_moment(d: int) -> float:
    """rho = E[v**2] of a normal truncated to (-1 / sqrt(d), 1 / sqrt(d)).

    It is the rho of Ferret (arXiv 2409.06277, below eq. 6); 1 / rho = 3 d + 0.4 + O(1 / d).
    """
    return _moment(d, 2) / (_moment(d, 0) * d)


@functools.cache
def inverse_cdf(d: int) -> tuple[float, ...]:
    """Float32 coefficients A_0, A_1, ... with v = u (A_0 + u**2 (A_1 + u**2 (A_2 + ...))).

    If u is uniform on (-1, 1), v is normal truncated to (-1 / sqrt(d), 1 / sqrt(d)). It is the
    Maclaurin series of the normal quantile in z = u * integral of exp(-x**2 / 2) from 0 to
    1 / sqrt(d). Terms below 2**-27 of the first are left out.
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
