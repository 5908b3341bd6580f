"""FedAvg with an optimizer at the server.

    clients:   w_r^(i) = T first-order steps from w_r
    everyone:  w_{r+1} = w_r + a server optimizer's step for sum_i p_i (w_r^(i) - w_r)

- FedAvgM (Hsu et al. 2019, "Measuring the effects of non-identical data distribution for federated
  visual classification", arXiv 1909.06335): momentum.
- FedAdagrad, FedAdam, FedYogi (Reddi et al. 2020, "Adaptive federated optimization", arXiv
  2003.00295, Algorithm 2).
- DiLoCo (Douillard et al. 2023, "DiLoCo: Distributed low-communication training of language
  models", arXiv 2311.08105, Algorithm 1): Nesterov momentum, and clients that keep their AdamW
  (``local.optimizer_state = "kept"``) for hundreds of steps a round.

They go with any codec whose reports say changes or weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from fullfed.methods.averaging import averaging
from fullfed.methods.composition import Composition
from fullfed.methods.server_optimizers import Adaptive, Momentum
from fullfed.methods.setting import Setting

_LEAST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class MomentumOptions:
    """
    Attributes:
        learning_rate: of the server.
        momentum: how much of the last round's step goes on.
    """

    learning_rate: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_rate(self.learning_rate)
        check_share("momentum", self.momentum)


@dataclass(frozen=True)
class DiLoCoOptions(MomentumOptions):
    """
    Attributes:
        learning_rate: of the server.
        momentum: how much of the last round's step goes on.
    """

    learning_rate: float = 0.7


@dataclass(frozen=True)
class AdaptiveOptions:
    """
    Attributes:
        learning_rate: of the server: the most that a number changes in a round, about. The paper
            searches for it; with the default, changes smaller than tau are averaged over rounds
            and applied as they are.
        beta_1: how much of the mean change goes on from round to round.
        beta_2: the same of the mean squared change; unused by FedAdagrad.
        tau: what is added to its root: below it, small changes stay small.
    """

    learning_rate: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        check_rate(self.learning_rate)
        check_share("beta_1", self.beta_1)
        check_share("beta_2", self.beta_2)
        if not _LEAST <= self.tau < math.inf:
            raise ValueError("tau is a positive number, one that float32 holds")


def check_rate(rate: float) -> None:
    if not 0 < rate < math.inf:
        raise ValueError("learning_rate is a positive number")


def check_share(name: str, share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"{name} is a share, at least 0 and below 1")


def build_fedavgm(setting: Setting, options: MomentumOptions) -> Composition:
    optimizer = Momentum(options.learning_rate, options.momentum)
    return averaging(setting, optimizer=optimizer)


def build_diloco(setting: Setting, options: DiLoCoOptions) -> Composition:
    optimizer = Momentum(options.learning_rate, options.momentum, nesterov=True)
    return averaging(setting, optimizer=optimizer)


def builder(
    rule: Literal["adagrad", "adam", "yogi"],
) -> Callable[[Setting, AdaptiveOptions], Composition]:
    """The ``build`` of an adaptive method."""

    def build(setting: Setting, options: AdaptiveOptions) -> Composition:
        rates = options.learning_rate, options.beta_1, options.beta_2, options.tau
        return averaging(setting, optimizer=Adaptive(rule, *rates))

    return build
