"""From the bits of a stream to the numbers of a direction: signs, truncated normals, normals.

The readable NumPy form. Every operation is one IEEE float32 operation, rounded to
nearest even, none fused with another, so each backend obtains the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fullfed.randomness import Stream
from fullfed.sketch.layout import LANES, fields
from fullfed.sketch.series import inverse_cdf

Float32s = NDArray[np.float32]

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
        """Rows served by one counter."""
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
    """Normals truncated to +-1/sqrt(d)."""
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
    """The polynomial LOGARITHM. Horner's rule would keep a processor waiting."""
    low, middle, high = (polynomial(LOGARITHM[n : n + 2], g) for n in (0, 2, 4))
    square = g * g
    high += np.float32(LOGARITHM[6]) * square
    middle *= square
    high *= square * square
    high += middle + low
    return high
