"""FedProx: FedAvg whose clients are held near where the round began (Li et al., "Federated
optimization in heterogeneous networks", arXiv 1812.06127, Algorithm 2).

    clients:   w_r^(i) = T first-order steps from w_r on F_i(w) + mu / 2 * ||w - w_r||**2
    everyone:  w_{r+1} = sum_i n_i w_r^(i) / sum_i n_i

The proximal term holds clients with different data together while they train. docs/
adding-a-method.md goes through this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.methods.averaging import averaging
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import FirstOrder
from fullfed.methods.setting import Setting
from fullfed.training.loss import Loss, answer_loss


@dataclass(frozen=True)
class FedProxOptions:
    """
    Attributes:
        mu: how strongly a client is held to where the round began; 0 is FedAvg.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.mu < math.inf:
            raise ValueError("mu is a number, at least 0")


@dataclass(frozen=True)
class Proximal(FirstOrder):
    """First-order optimisation of the loss plus mu / 2 * ||w - w_r||**2."""

    mu: float = 0.0

    def loss(self, parameters: Sequence[Tensor]) -> Loss:
        start = [p.detach().clone() for p in parameters]

        def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
            pairs = zip(parameters, start, strict=True)
            squares = [(p - s).float().square().sum() for p, s in pairs]
            term = self.mu / 2 * torch.stack(squares).sum()
            # The term's gradient without its value: what is reported is the loss on the data.
            return answer_loss(model, batch) + (term - term.detach())

        return loss


def build(setting: Setting, options: FedProxOptions) -> Composition:
    return averaging(setting, local=Proximal(setting, mu=options.mu))
