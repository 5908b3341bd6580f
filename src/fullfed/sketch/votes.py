"""One-bit coordinates as votes: the signs of a block's rotated numbers, before it is rotated back.

Where all clients rotate alike, each bit means the same for all, and bits can be counted.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fullfed.sketch.backends import CODED_BLOCK
from fullfed.sketch.codes import Coded


def signs_of(coded: Coded) -> Tensor:
    """The signs of one-bit numbers.

    Returns:
        int8, -1 or 1, shape (``code.padded(count)``,), on the CPU: ``CODED_BLOCK`` for each scale,
        for the last what is left.
    """
    bits = np.unpackbits(coded.codes.numpy(), count=coded.code.padded(coded.count))
    return torch.from_numpy(bits).to(torch.int8).mul_(2).sub_(1)


def codes_of(signs: Tensor) -> Tensor:
    """The codes, uint8, of which ``signs_of`` makes the same signs again."""
    return torch.from_numpy(np.packbits((signs > 0).numpy()))


def energy_of(scales: Tensor, count: int) -> float:
    """The sum of the squares of ``count`` one-bit numbers with these scales."""
    lengths = torch.full(scales.shape, CODED_BLOCK, dtype=torch.float64)
    lengths[-1] = count - CODED_BLOCK * (len(scales) - 1)
    return float(lengths @ scales.double().square())
