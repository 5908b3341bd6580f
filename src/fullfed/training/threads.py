"""How many of torch's threads a model is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_PARAMETERS_A_THREAD = 2_000_000


@contextmanager
def fitting_threads(model: nn.Module) -> Iterator[None]:
    """Inside, torch has no more threads than the model's operations are worth.

    Small ones are over before a second thread is awake, and where the machine is busy the first
    then waits for the second's turn on a core: ten steps of a model of a quarter of a million
    parameters took 0.6 s on one thread, and on two 0.7 to 3.5 s.
    """
    before = torch.get_num_threads()
    worth = sum(p.numel() for p in model.parameters()) // _PARAMETERS_A_THREAD
    torch.set_num_threads(max(min(before, worth), 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)
