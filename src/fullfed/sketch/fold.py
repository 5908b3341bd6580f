"""The order in which partial sums are added; part of the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from fullfed.sketch.layout import FOLD


def fold(rows: Tensor) -> Tensor:
    """The sum (width,) of float32 rows (n, width): 128 at a time in order from zero, repeatedly."""
    while rows.shape[0] > 1:
        sums = torch.zeros(-(-rows.shape[0] // FOLD), rows.shape[1], device=rows.device)
        for start in range(min(FOLD, rows.shape[0])):
            part = rows[start::FOLD]
            sums[: part.shape[0]] += part
        rows = sums
    return rows[0]
