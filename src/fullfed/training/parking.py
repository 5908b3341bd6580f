"""Putting weights away while a visit does not need them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn


def parked(weight: nn.Parameter, path: Path) -> Callable[[], None]:
    """Put the weight's values away, in the host's memory or, from there, in a file.

    Returns:
        what brings them back, bit for bit.
    """
    values, shape = weight.data, weight.shape
    if values.device.type != "cpu":
        away, device = values.cpu(), values.device

        def back() -> None:
            weight.data = away.to(device)
    else:
        # Not safetensors: its bytes would be one copy more in memory.
        values.contiguous().view(-1).view(torch.uint8).numpy().tofile(path)
        dtype = values.dtype

        def back() -> None:
            weight.data = torch.from_numpy(np.fromfile(path, np.uint8)).view(dtype).view(shape)
            path.unlink()

    return back
