"""Server optimizers: what becomes of the clients' mean change before it is applied.

The mean change takes the place of a negative gradient. What an optimizer remembers from round to
round are its moments. Every replica keeps them and computes the same step from the same update, so
that nothing but the update is sent: 4 bytes a number of memory for each moment, in snapshots too.
All steps are elementwise, with every rounding decided: replicas stay equal to the last bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_NUMBER = torch.Size([])  # the shape of a moment that is one number


class ServerOptimizer(ABC):
    """Turns the mean change of a parameter into what is added to it."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Of a parameter's moments."""

    @abstractmethod
    def start(self, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter's moments at version 0, by their own names, on its device."""

    @abstractmethod
    def step(
        self, change: Tensor, parameter: Tensor, moments: MutableMapping[str, Tensor]
    ) -> Tensor:
        """What is added to a parameter.

        Args:
            change: the clients' mean, float32.
            parameter: before the step, float32.
            moments: the parameter's; updated in place.

        Returns:
            float32, in the parameter's shape; may be ``change``, overwritten.
        """


@dataclass(frozen=True)
class Momentum(ServerOptimizer):
    """SGD with momentum, as torch.optim.SGD has it, with the change for a negative gradient.

        v <- momentum * v + change;    w <- w + learning_rate * v

    With ``nesterov`` what is applied is learning_rate * (change + momentum * v). The first is
    FedAvgM's (Hsu et al. 2019, arXiv 1909.06335), the second DiLoCo's (Douillard et al. 2023,
    arXiv 2311.08105, Algorithm 1).
    """

    learning_rate: float
    momentum: float
    nesterov: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return ("momentum",)

    def start(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"momentum": _zeros(parameter)}

    def step(
        self, change: Tensor, parameter: Tensor, moments: MutableMapping[str, Tensor]
    ) -> Tensor:
        v = moments["momentum"].mul_(self.momentum).add_(change)
        ahead = change.add_(v * self.momentum) if self.nesterov else v
        return ahead * self.learning_rate


@dataclass(frozen=True)
class Adaptive(ServerOptimizer):
    """FedAdagrad, FedAdam and FedYogi (Reddi et al. 2020, arXiv 2003.00295, Algorithm 2).

        m <- beta_1 * m + (1 - beta_1) * change
        v <- v + change**2                                            adagrad
        v <- beta_2 * v + (1 - beta_2) * change**2                    adam
        v <- v - (1 - beta_2) * change**2 * sign(v - change**2)       yogi
        w <- w + learning_rate * m / (sqrt(v) + tau)

    v begins at tau**2; there is no bias correction.
    """

    rule: Literal["adagrad", "adam", "yogi"]
    learning_rate: float
    beta_1: float
    beta_2: float
    tau: float

    @property
    def names(self) -> tuple[str, ...]:
        return "first", "second"

    def start(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"first": _zeros(parameter), "second": _zeros(parameter).fill_(self.tau**2)}

    def step(
        self, change: Tensor, parameter: Tensor, moments: MutableMapping[str, Tensor]
    ) -> Tensor:
        m = moments["first"].mul_(self.beta_1).add_(change * (1 - self.beta_1))
        v, square = moments["second"], change.square_()
        if self.rule == "adagrad":
            v.add_(square)
        elif self.rule == "adam":
            v.mul_(self.beta_2).add_(square.mul_(1 - self.beta_2))
        else:
            sign = torch.sign(v - square)
            v.sub_(square.mul_(1 - self.beta_2).mul_(sign))
        return (m * self.learning_rate).div_(v.sqrt().add_(self.tau))


@dataclass(frozen=True)
class AdamW(ServerOptimizer):
    """AdamW as torch.optim.AdamW has it (Loshchilov and Hutter 2017, arXiv 1711.05101), with the
    change for a negative gradient. FLASC's server is one."""

    learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        return "first", "second", "beta_1_power", "beta_2_power"

    def start(self, parameter: Tensor) -> dict[str, Tensor]:
        # Products, not powers: a library's power may differ in the last bit between machines.
        one = torch.ones(_NUMBER, dtype=torch.float64, device=parameter.device)
        moments = {"first": _zeros(parameter), "second": _zeros(parameter)}
        return {**moments, "beta_1_power": one, "beta_2_power": one.clone()}

    def step(
        self, change: Tensor, parameter: Tensor, moments: MutableMapping[str, Tensor]
    ) -> Tensor:
        m = moments["first"].mul_(self.beta_1).add_(change * (1 - self.beta_1))
        v = moments["second"].mul_(self.beta_2).add_(change.square_().mul_(1 - self.beta_2))
        left_1 = 1 - float(moments["beta_1_power"].mul_(self.beta_1))
        left_2 = 1 - float(moments["beta_2_power"].mul_(self.beta_2))
        # By a reciprocal: GPUs divide by a number so, CPUs do not.
        root = v.sqrt().mul_(1 / math.sqrt(left_2)).add_(self.epsilon)
        step = (m * (self.learning_rate / left_1)).div_(root)
        if self.weight_decay:
            step.sub_(parameter * (self.learning_rate * self.weight_decay))
        return step


def moments_of(optimizer: ServerOptimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All moments at version 0, by the parameter's name and their own: ``weight/momentum``."""
    return {
        f"{name}/{moment}": tensor
        for name, parameter in parameters.items()
        for moment, tensor in optimizer.start(parameter.detach()).items()
    }


def take_step(
    optimizer: ServerOptimizer,
    parameters: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    apply: Callable[[Mapping[str, Tensor]], None],
    *,
    changes: bool,
) -> None:
    """Change parameters, in place, by what an optimizer makes of an update.

    Args:
        parameters: of a replica, by name; float32 where weights in 16 bits are exact.
        moments: from ``moments_of``; updated in place.
        apply: adds the mean change to what it is given, or puts the mean in its place.
        changes: whether it only adds: then it is given zeros, and nothing of a small change is
            lost beside a large weight.
    """
    reached = {
        name: torch.zeros_like(p, dtype=torch.float32) if changes else p.detach().float().clone()
        for name, p in parameters.items()
    }
    apply(reached)
    for name, parameter in parameters.items():
        start = parameter.detach().float()
        change = reached[name] if changes else reached[name].sub_(start)
        own = {moment: moments[f"{name}/{moment}"] for moment in optimizer.names}
        parameter.copy_(start + optimizer.step(change, start, own))


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.float32)
