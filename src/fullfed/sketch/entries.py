"""From the bits of a stream to the numbers of a direction: signs, truncated normals, normals.

The readable NumPy form. Every operation is one IEEE float32 operation, rounded to
nearest even, none fused with another, so each backend obtains the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fullfed.sketch.generator import Stream
from fullfed.sketch.layout import LANES, fields
from fullfed.sketch.series import inverse_cdf

Float32s = NDArray[np.float32]

# log(1 + f) = f - f**2 / 2 + f**3 P(f), highest power first (Cephes, logf).
LOGARITHM = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
# erfinv(x) / x in w - 2.5, w = -log(1 - x**2) < 5, highest power first
# (Giles, "Approximating the erfinv function", GPU Computing Gems, 2011).
CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
# The same in sqrt(w) - 3.5 for w >= 5: our least squares fit to w = 22.3, beyond Giles's range.
TAIL = (
    -8.66345363e-06,
    -0.000176216476,
    0.000583900546,
    -0.000760375755,
    0.000987497391,
    -0.0020238515,
    0.00330245658,
    1.00736392,
    3.33548474,
)
LN2 = 0.693147182
SQRT2 = 1.41421354
HALF_OCTAVE = 0x3F3504F3  # the bits of sqrt(1/2)


@dataclass(frozen=True)
class Entries:
    """How the numbers of a direction are made.

    Attributes:
        bits: 1 for signs, 16 for truncated normals, 32 for normals.
        series: the coefficients of ``inverse_cdf`` for truncated normals, else empty.
    """

    bits: int
    series: tuple[float, ...] = ()

    @property
    def parts(self) -> int:
        """Rows served by one counter."""
        return 128 // self.bits

    def values(self, stream: Stream, first: int, rows: int) -> Float32s:
        """Rows first, first + 1, ... of the stream's numbers, float32, shape (rows, LANES)."""
        numbers = fields(stream, self.bits, LANES, first, rows)
        if self.bits == 1:
            return signs(numbers)
        return truncated_normals(numbers, self.series) if self.bits == 16 else normals(numbers)


SIGNS = Entries(bits=1)
NORMALS = Entries(bits=32)


def truncated(d: int) -> Entries:
    """Normals truncated to +-1/sqrt(d)."""
    return Entries(bits=16, series=inverse_cdf(d))


def signs(bits: NDArray[np.uint32]) -> Float32s:
    """+1 for 0 and -1 for 1."""
    return np.float32(1) - np.float32(2) * bits.astype(np.float32)


def polynomial(coefficients: tuple[float, ...], x: Float32s) -> Float32s:
    """Horner's rule, highest power first."""
    total: Float32s = np.full_like(x, np.float32(coefficients[0]))
    for coefficient in coefficients[1:]:
        total = total * x + np.float32(coefficient)
    return total


def truncated_normals(halves: NDArray[np.uint32], series: tuple[float, ...]) -> Float32s:
    """From 16-bit numbers h: u = (2 h - 65535) / 65536, then the series of ``inverse_cdf``."""
    u = (2 * halves.astype(np.int32) - 65535).astype(np.float32) * np.float32(2.0**-16)
    return polynomial(series[::-1], u * u) * u


def normals(words: NDArray[np.uint32]) -> Float32s:
    """From 32-bit words: bit 31 is the sign, the rest places |x| = 1 - t of erfinv's argument."""
    t = (2 * (words & np.uint32(0x7FFFFFFF)) + 1).astype(np.float32) * np.float32(2.0**-32)
    w = -logarithm(t * (np.float32(2) - t))
    centre = polynomial(CENTRE, w - np.float32(2.5))
    tail = polynomial(TAIL, np.sqrt(w) - np.float32(3.5))
    size = np.where(w < np.float32(5), centre, tail) * (np.float32(1) - t) * np.float32(SQRT2)
    signed: Float32s = np.where(words >> np.uint32(31) == 1, -size, size)
    return signed


def logarithm(p: Float32s) -> Float32s:
    """log(p) of normal numbers in (0, 1]: p = 2**e (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2)."""
    bits = p.view(np.int32)
    e = (bits - np.int32(HALF_OCTAVE)) >> np.int32(23)
    f = (bits - (e << np.int32(23))).view(np.float32) - np.float32(1)
    square = f * f
    rest = polynomial(LOGARITHM, f) * (f * square) - np.float32(0.5) * square
    return (f + rest) + e.astype(np.float32) * np.float32(LN2)
