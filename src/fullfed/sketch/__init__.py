"""Shared randomness: the same random numbers, projections and directions on every device.

Useful on its own, for gradient compression or zeroth-order optimisation; see docs/sketch.md.

Example:
    >>> import torch
    >>> weights = [torch.zeros(1000)]
    >>> basis = fullfed.sketch.SignBasis(seed=0, round=3, coordinates=64)
    >>> y = basis.project([torch.ones(1000)])  # 64 numbers
    >>> basis.reconstruct_(weights, y)  # in place: weights += what y says
"""

from fullfed.randomness import SHARED, SPECIFICATION, Purpose, Stream, permutation, uniforms
from fullfed.sketch.bases import NormalBasis, SignBasis, allocate
from fullfed.sketch.codes import (
    BITS,
    LARGEST_SCALE,
    Code,
    Coded,
    GroupArgmax,
    LloydMax,
    affordable,
    code_of,
    decoded,
    scales_fit,
)
from fullfed.sketch.directions import Distribution, accumulate_, dither_, perturb_, round_
from fullfed.sketch.entries import second_moment
from fullfed.sketch.scales import Scales
from fullfed.sketch.votes import codes_of, energy_of, signs_of

__all__ = [
    "BITS",
    "LARGEST_SCALE",
    "SHARED",
    "SPECIFICATION",
    "Code",
    "Coded",
    "Distribution",
    "GroupArgmax",
    "LloydMax",
    "NormalBasis",
    "Purpose",
    "Scales",
    "SignBasis",
    "Stream",
    "accumulate_",
    "affordable",
    "allocate",
    "code_of",
    "codes_of",
    "decoded",
    "dither_",
    "energy_of",
    "permutation",
    "perturb_",
    "round_",
    "scales_fit",
    "second_moment",
    "signs_of",
    "uniforms",
]
