"""DP-SGD (Abadi et al. 2016, arXiv 1607.00133, Algorithm 1): steps in which no record counts for
more than a bound, and noise hides whether it counted at all.

Each record's gradient has a backward pass of its own. That is exact for any layer, of tied weights
too, and needs the memory of one more gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import LocalTable, MemoryTable
from fullfed.data.batches import Batch
from fullfed.training.first_order import Improvement, Steps, passes
from fullfed.training.loss import Loss, answer_loss
from fullfed.training.watch import OnStep, unwatched


class Noise(Protocol):
    def normal(self, count: int) -> Tensor:
        """So many new numbers of the standard normal distribution, float32, on the CPU."""


@dataclass(frozen=True)
class Bound:
    """What a record counts for in a step.

    Attributes:
        clip: the largest norm that its gradient keeps.
        deviation: of the noise in each number of the sum of all gradients.
        records: that are in a batch in the mean; the noisy sum is divided by it.
    """

    clip: float
    deviation: float
    records: float


def train_privately(
    model: PreTrainedModel,
    parameters: Mapping[str, Tensor],
    batches: Iterable[Batch],
    local: LocalTable,
    memory: MemoryTable,
    bound: Bound,
    noise: Noise,
    loss: Loss = answer_loss,
    state: Mapping[str, Tensor] | None = None,
    exact: Mapping[str, Tensor] | None = None,
    on_step: OnStep = unwatched,
) -> Improvement:
    """Take one step a batch on ``parameters``, in place.

    A record's loss is the mean over its own learned tokens, so that records weigh alike however
    long they are. All that comes after the noise, the optimizer too, changes nothing about privacy.
    ``bound.clip`` takes the place of ``local.clip``. A record whose gradient is not finite counts
    as one whose gradient is zero.

    Args:
        batches: Poisson samples of the client's records; an empty one makes a step of noise alone.
        bound: what a record counts for.
        noise: where noise comes from.
        local, memory, loss, state, exact: as for ``first_order.train``.
        on_step: is told of each step, but not its loss.

    Returns:
        an improvement without losses, since they are of records as they are. Whether the
        parameters are finite is the caller's to see.
    """
    sums = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in parameters.items()}
    unclipped = local.model_copy(update={"clip": None})
    with passes(model, parameters, unclipped, memory, loss, state, exact) as (steps, backward):
        for batch in batches:
            for record in batch.split(1) if len(batch.labels) else []:
                backward(record, 1.0)
                _add_clipped(sums, parameters, bound.clip)
            _give_noisy_mean(sums, steps, bound, noise)
            steps.take()
            on_step(None)
    return Improvement([], exact=steps.masters, state=steps.state(), first_known=False)


def _add_clipped(sums: Mapping[str, Tensor], parameters: Mapping[str, Tensor], clip: float) -> None:
    """Add one record's gradient, of all parameters together no longer than ``clip``; drop it."""
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients.values()]
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    if math.isfinite(norm):
        factor = min(1.0, clip / norm) if norm > 0 else 1.0
        for name, gradient in gradients.items():
            sums[name].add_(gradient, alpha=factor)
    for p in parameters.values():
        p.grad = None


def _give_noisy_mean(sums: Mapping[str, Tensor], steps: Steps, bound: Bound, noise: Noise) -> None:
    """Give what the optimizers train the gradient for a step; the sums are zero again."""
    for name, master in steps.masters.items():
        total = sums[name]
        drawn = noise.normal(total.numel()).view(total.shape).to(total.device)
        master.grad = total.add(drawn, alpha=bound.deviation).div_(bound.records)
        total.zero_()
