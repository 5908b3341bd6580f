"""Which candidate directions are worth walking along: FedKSeed-Pro's probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

BOUND = 1000.0  # derivatives are clipped to +-BOUND, so that no single one rules


def amplitudes(derivatives: Tensor) -> Tensor:
    """|derivative|, clipped."""
    return derivatives.abs().clamp(max=BOUND)


def probabilities(sums: Tensor, visits: Tensor) -> Tensor:
    """How likely each candidate is drawn, float32 (K,), from its visits so far.

        m = mean amplitude, 0 before the first visit;  p = softmax((m - min m) / (max m - min m))

    Args:
        sums: of each candidate's amplitudes.
        visits: how many amplitudes those are sums of.
    """
    means = sums.double() / visits.clamp(min=1)
    low, high = torch.aminmax(means)
    spread = (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.softmax((means - low) / spread, 0).float()
