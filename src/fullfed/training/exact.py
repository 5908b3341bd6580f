"""Exact values of weights in 16 bits: float32 numbers that the weights are rounded from.

Near 0.05 neighbours in bfloat16 are 2.4e-4 apart. A checkpoint in bfloat16 stands on these numbers,
and steps of AdamW at a rate of 2e-5 do not leave the half of that distance around them for a visit
or two: neither the forward pass of training nor the rounded model sees anything of them. Exact
values that are spread evenly over what rounds to each weight mend it: of many weights that move by
a tenth of the distance, a tenth are rounded to the next number, and on average the rounded model
moves as the exact one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fullfed.randomness import Stream
from fullfed.sketch import dither_


def dithered(parameters: Mapping[str, Tensor], stream: Stream) -> dict[str, Tensor]:
    """Exact values, float32, by name, of the parameters that are in 16 bits; they round to these.

    Args:
        stream: fixes them, on every device alike.
    """
    exact = {name: p.detach().float() for name, p in parameters.items() if p.dtype.itemsize == 2}
    for dtype in (torch.bfloat16, torch.float16):
        own = [value for name, value in exact.items() if parameters[name].dtype == dtype]
        if own:
            dither_(own, dtype, stream)
    return exact
