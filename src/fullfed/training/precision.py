"""What float32 weights compute in, where it is not float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Inside, a forward pass is torch's autocast to bfloat16, if that is the precision: products of
    matrices in bfloat16, sums and norms in float32. The backward pass, outside, follows."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def matrix_units(precision: Precision) -> Iterator[None]:
    """Inside, a GPU's matrix units round the factors of float32 products, forward and backward, if
    the precision is "tf32". The setting is torch's, of the whole process; it is put back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
