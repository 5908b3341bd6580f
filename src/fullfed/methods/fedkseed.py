"""FedKSeed: clients train without gradients, along numbered random directions (Qin et al.,
"Federated full-parameter tuning of billion-sized language models with communication cost under 18
kilobytes", arXiv 2312.06353, Algorithm 1).

    clients:   g_t = [f(w + eps z_s) - f(w - eps z_s)] / (2 eps),   w <- w - eta g_t z_s
               for steps t, s one of K candidate seeds drawn at random
    server:    A[s] += mean over clients of the sum of g_t with seed s
    everyone:  w = w_0 - eta sum_s A[s] z_s

FedKSeed-Pro draws seeds by how large their derivatives have been (Section 4.4; codecs/seeds.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import LocalTable
from fullfed.data.batches import Batch
from fullfed.federation.messages import Plan
from fullfed.federation.method import NOTHING
from fullfed.methods.averaging import averaging
from fullfed.methods.codecs.seeds import Candidates, Seeds
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import LocalWork, check_without_gradients
from fullfed.methods.setting import Setting
from fullfed.sketch import Distribution
from fullfed.training.first_order import Improvement, TrainingError
from fullfed.training.watch import OnStep, unwatched
from fullfed.training.zeroth_order import Neighbourhood

_SUM_TOLERANCE = 1e-4  # of 1, for probabilities in float32


@dataclass(frozen=True)
class FedKSeedOptions:
    """
    Attributes:
        seeds: K, the candidate directions.
        distribution: of their entries: "gaussian" as published, or "rademacher" (signs).
        perturbation: eps, how far from the weights losses are taken.
    """

    seeds: int = 4096
    distribution: Distribution = "rademacher"
    perturbation: float = 5e-4

    def __post_init__(self) -> None:
        if not 1 <= self.seeds < 1 << 31:
            raise ValueError("seeds is at least 1 and below 2**31")
        if not 0 < self.perturbation < math.inf:
            raise ValueError("perturbation is a positive number")


def build(setting: Setting, options: FedKSeedOptions) -> Composition:
    return _composition(setting, options, by_importance=False)


def build_pro(setting: Setting, options: FedKSeedOptions) -> Composition:
    return _composition(setting, options, by_importance=True)


def _composition(setting: Setting, options: FedKSeedOptions, by_importance: bool) -> Composition:
    check_without_gradients(setting.local)
    candidates = Candidates(setting.seed, options.seeds, options.distribution)
    return averaging(
        setting,
        local=AlongCandidates(candidates, options.perturbation, setting.local),
        codec=Seeds(candidates, setting.local, by_importance),
        offload=True,  # a visit in the memory of inference, as published
    )


@dataclass(frozen=True)
class AlongCandidates(LocalWork):
    """Two-sided SPSA: each step goes down one candidate direction (FedKSeed, eqs. 3 and 4).

        g = [f(w + eps z) - f(w - eps z)] / (2 eps),   w <- w - learning_rate * g * z

    Parameters in 16 bits are moved as they are, without exact copies: a visit takes the memory of
    inference.

    Attributes:
        candidates: which directions there are.
        distance: eps.
        local: the recipe's table, of which what gradients need does not count.
    """

    candidates: Candidates
    distance: float
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
        check_probabilities(plan)
        nearby = Neighbourhood(model, parameters, local=self.local)
        weights = [p.detach() for p in parameters.values()]
        losses, steps = [], []
        for step, batch in enumerate(batches):
            number = self.candidates.draw(plan, step)
            direction = self.candidates.direction(number)
            loss, slope = nearby.derivative(batch.to(model.device), direction, self.distance)
            self.candidates.step_(weights, number, -self.local.learning_rate * slope)
            losses.append(loss)
            on_step(loss)
            steps.append((number, slope))
        return Improvement(losses, tuple(steps))


def check_probabilities(plan: Plan) -> None:
    """TrainingError unless the plan's probabilities, where it has any, are what they say."""
    if "probabilities" not in plan.tensors:
        return
    sent = plan.tensors["probabilities"]
    total = float(sent.double().sum())
    if bool((sent < 0).any()) or not abs(total - 1) <= _SUM_TOLERANCE:
        raise TrainingError(
            f"the plan's probabilities are not non-negative numbers that sum to 1 (sum {total:g})"
        )
