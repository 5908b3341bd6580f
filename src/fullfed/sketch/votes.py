"""One-bit coordinates as votes: the signs of a block's rotated numbers, before it is rotated back.

Where all clients rotate alike, each bit means the same for all, and bits can be counted.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fullfed.sketch.backends import CODED_BLOCK
from fullfed.sketch.codes import Coded


def rotated_numbers(coded: Coded) -> Tensor:
    """The scale of its block or the negative of that, for each one-bit number.

    Returns:
        float32, shape (``code.padded(count)``,), on the CPU.
    """
    padded = coded.code.padded(coded.count)
    bits = torch.from_numpy(np.unpackbits(coded.codes.numpy(), count=padded))
    return (
        torch.where(bits.bool(), 1.0, -1.0) * coded.scales.repeat_interleave(CODED_BLOCK)[:padded]
    )


def code_rotated(numbers: Tensor) -> dict[str, Tensor]:
    """The codes (uint8) and scales (float32) of one-bit numbers, of which ``rotated_numbers`` makes
    the same again.

    Args:
        numbers: float32, shape (``code.padded(K)``,), on the CPU; alike within a block but for
            their signs.
    """
    codes = torch.from_numpy(np.packbits((numbers > 0).numpy()))
    return {"codes": codes, "scales": numbers[::CODED_BLOCK].abs().contiguous()}
