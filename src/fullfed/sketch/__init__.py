"""Shared randomness: the same random numbers, projections and directions on every device.

Useful on its own, for gradient compression or zeroth-order optimisation; see docs/sketch.md.
"""

from fullfed.randomness import SHARED, SPECIFICATION, Purpose, Stream, permutation, uniforms
from fullfed.sketch.allocation import allocate
from fullfed.sketch.budget import affordable
from fullfed.sketch.checks import check_specification
from fullfed.sketch.coded import LARGEST_SCALE, Code, Coded, decoded, scales_fit
from fullfed.sketch.codes import BITS, Largest, Rounded, code_of
from fullfed.sketch.dense import NormalBasis, RademacherBasis
from fullfed.sketch.directions import Distribution, accumulate_, perturb_
from fullfed.sketch.pieces import Rounding
from fullfed.sketch.rounding import round_
from fullfed.sketch.sign import SignBasis
from fullfed.sketch.weights import Weight

__all__ = [
    "BITS",
    "LARGEST_SCALE",
    "SHARED",
    "SPECIFICATION",
    "Code",
    "Coded",
    "Distribution",
    "Largest",
    "NormalBasis",
    "Purpose",
    "RademacherBasis",
    "Rounded",
    "Rounding",
    "SignBasis",
    "Stream",
    "Weight",
    "accumulate_",
    "affordable",
    "allocate",
    "check_specification",
    "code_of",
    "decoded",
    "permutation",
    "perturb_",
    "round_",
    "scales_fit",
    "uniforms",
]
