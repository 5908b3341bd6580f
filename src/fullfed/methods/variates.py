"""FedPepTAO's server: momentum, and the control variates of SCAFFOLD (Che et al., arXiv 2310.15080;
Karimireddy et al., arXiv 1910.06378), on one tensor. As the released code has them.

    a client:     c_i <- c_i - c + (w - w_i) / (K_i eta)
    the server:   w~ = sum_i p_i w_i,    delta_r = w - w~
                  c <- c + |S| / N sum_i K_i / (sum_j K_j) (c_i - c_i before)
                  v <- mu v + (1 - mu) (delta_{r-1} - delta_r) + sum_i p_i (c - c_i)
                  w <- w~ - s_r v,       s_r = max(s 0.99^{r - 1}, 1e-4)

w are the weights that the round began with, w_i those that client i of the cohort S came to in K_i
steps at the learning rate eta, p_i its share of the samples, and N the number of all clients. The
first round only averages: there is no delta before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_DECAY, _FLOOR = 0.99, 1e-4  # of the server's rate, as published


@dataclass(frozen=True)
class ServerState:
    """
    Attributes:
        weights: w.
        variate: c.
        momentum: v.
        delta: of the last round.
    """

    weights: Tensor
    variate: Tensor
    momentum: Tensor
    delta: Tensor

    @staticmethod
    def start(weights: Tensor) -> ServerState:
        """Before the first round."""
        return ServerState(weights, *(torch.zeros_like(weights) for _ in range(3)))


@dataclass(frozen=True)
class VisitResult:
    """What the server knows of a visit.

    Attributes:
        share: p_i; a round's sum to 1.
        steps: K_i.
        weights: w_i.
        variate: c_i after the visit.
    """

    share: float
    steps: int
    weights: Tensor
    variate: Tensor


@dataclass(frozen=True)
class ServerRule:
    """
    Attributes:
        rate: s; with 0 the server only averages.
        momentum: mu.
        local_rate: eta.
        clients: N.
    """

    rate: float
    momentum: float
    local_rate: float
    clients: int

    def after(self, state: ServerState, visits: Sequence[VisitResult], round: int) -> ServerState:
        """The state after a round; in the dtype of its tensors.

        Args:
            round: of training, from 1.
        """
        began = state.weights
        mean = sum((v.share * v.weights for v in visits), torch.zeros_like(began))
        delta = began - mean
        steps = sum(v.steps for v in visits)
        # c_i - c_i before = (w - w_i) / (K_i eta) - c, so what c_i was need not be known.
        pull = sum((began - v.weights for v in visits), torch.zeros_like(began))
        moved = pull / (steps * self.local_rate) - state.variate
        variate = state.variate + len(visits) / self.clients * moved
        if round == 1:
            return replace(state, weights=mean, variate=variate, delta=delta)
        apart = sum((v.share * (variate - v.variate) for v in visits), torch.zeros_like(began))
        change = (1 - self.momentum) * (state.delta - delta)
        momentum = self.momentum * state.momentum + change + apart
        return ServerState(mean - self.rate_of(round) * momentum, variate, momentum, delta)

    def rate_of(self, round: int) -> float:
        """s_r."""
        return max(self.rate * _DECAY ** (round - 1), min(self.rate, _FLOOR))


def client_variate(
    own: Tensor, common: Tensor, before: Tensor, after: Tensor, steps: int, local_rate: float
) -> Tensor:
    """c_i after a visit.

    Args:
        own, common: c_i and c before it.
        before, after: w and w_i.
    """
    return own - common + (before - after) / (steps * local_rate)
