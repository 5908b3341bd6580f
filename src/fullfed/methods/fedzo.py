"""FedZO: FedAvg whose clients train without gradients (Fang et al., "Communication-efficient
stochastic zeroth-order optimization for federated learning", arXiv 2201.09531, Algorithm 1, eq. 5).

    clients:   e = (1/b2) sum_n (d/mu) [F(w + mu v_n) - F(w)] v_n,   w <- w - eta e
               F the loss on a batch of b1 samples, v_n uniform on the unit sphere
    server:    w_{r+1} = mean over clients of their w
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import LocalTable
from fullfed.data.batches import Batch
from fullfed.federation.messages import Plan
from fullfed.federation.method import NOTHING
from fullfed.methods.averaging import averaging
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import LocalWork, check_without_gradients
from fullfed.methods.setting import Setting
from fullfed.sketch import Purpose, Stream, accumulate_
from fullfed.training.first_order import Improvement
from fullfed.training.watch import OnStep, unwatched
from fullfed.training.zeroth_order import Neighbourhood, RandomDirection, length


@dataclass(frozen=True)
class AlongSpheres(LocalWork):
    """Forward differences along directions that are uniform on the unit sphere.

    Attributes:
        seed: the recipe's.
        directions: b2, along which a batch's loss is taken.
        rms: mu / sqrt(d), the root mean square of what is added to a weight.
        local: the recipe's table, of which what gradients need does not count; its rate is eta.
    """

    seed: int
    directions: int
    rms: float
    local: LocalTable

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
        state: Mapping[str, Tensor],
        exact: Mapping[str, Tensor] = NOTHING,
        on_step: OnStep = unwatched,
    ) -> Improvement:
        nearby = Neighbourhood(model, parameters, local=self.local)
        weights = {
            name: exact[name].clone() if name in exact else p.detach()
            for name, p in parameters.items()
        }
        losses = []
        for step, batch in enumerate(batches):
            batch = batch.to(model.device)
            here = nearby.here(batch)
            streams = [self._stream(plan, step, n) for n in range(self.directions)]
            amounts = [self.amount(nearby, batch, here, stream) for stream in streams]
            accumulate_(list(weights.values()), streams, amounts, "gaussian")
            for name in exact.keys() & weights.keys():
                parameters[name].detach().copy_(weights[name])
            losses.append(here)
            on_step(here)
        return Improvement(losses, exact=weights)

    def _stream(self, plan: Plan, step: int, n: int) -> Stream:
        block = step * self.directions + n
        return Stream(self.seed, Purpose.DIRECTION, plan.round, plan.client, block)

    def amount(self, nearby: Neighbourhood, batch: Batch, here: float, stream: Stream) -> float:
        """What of the stream's normal z is added to the weights, on account of v = z / ||z||.

        Args:
            here: the batch's loss at the weights.
        """
        d = nearby.elements
        mu, norm = self.rms * math.sqrt(d), length(stream, d, batch.input_ids.device)
        ahead = nearby.at(batch, RandomDirection(stream, "gaussian"), mu / norm)
        return -self.local.learning_rate / self.directions * (d / mu) * (ahead - here) / norm


@dataclass(frozen=True)
class FedZOOptions:
    """
    Attributes:
        directions: b2, the directions a step averages over.
        smoothing: mu, the length of a perturbation; "auto" is 5e-4 * sqrt(d), which moves each
            weight as far as FedKSeed's.
    """

    directions: int = 1
    smoothing: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise ValueError("directions is at least 1")
        if self.smoothing != "auto" and not 0 < self.smoothing < math.inf:
            raise ValueError("smoothing is a positive number or 'auto'")


def build(setting: Setting, options: FedZOOptions) -> Composition:
    check_without_gradients(setting.local)
    mu = options.smoothing
    rms = 5e-4 if mu == "auto" else float(mu) / math.sqrt(setting.elements)
    local = AlongSpheres(setting.seed, options.directions, rms, setting.local)
    return averaging(setting, local=local)
