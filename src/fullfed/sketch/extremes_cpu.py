"""The largest of many numbers in numba."""

# Kernels are typed by numba.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fullfed.sketch.scalars_cpu import at
from fullfed.sketch.threads_cpu import split

_PART = 1 << 15  # numbers looked at together
_SIZE = np.uint32(0x7FFFFFFF)


def largest_size(values: Tensor) -> float:
    """The largest absolute value of float32, contiguous, at least one; NaN if any is."""
    bits = values.view(-1).view(torch.int32).numpy().view(np.uint32)
    found = np.empty(-(-len(bits) // _PART), np.uint32)
    split(_largest, len(found), len(bits), bits, found)
    return float(found.max().view(np.float32))


@njit(nogil=True, cache=True)
def _largest(start, stop, bits, found):
    """found[p] = the largest of part p, without signs: so ordered, a NaN is above infinity."""
    for part in range(start, stop):
        most = np.uint32(0)
        for i in range(part * _PART, min(part * _PART + _PART, len(bits))):
            most = max(most, np.uint32(bits[at(i)] & _SIZE))
        found[part] = most
