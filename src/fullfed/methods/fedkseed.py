"""FedKSeed: Qin et al., "Federated full-parameter tuning of billion-sized language models with
communication cost under 18 kilobytes" (arXiv 2312.06353), Algorithm 1.

    clients:   g_t = [f(w + eps z_s) - f(w - eps z_s)] / (2 eps),   w <- w - eta g_t z_s
               for steps t, s one of K candidate seeds drawn at random
    server:    A[s] += mean over clients of the sum of g_t with seed s
    everyone:  w = w_0 - eta sum_s A[s] z_s

FedKSeed-Pro draws seeds by how large their derivatives have been (Section 4.4; importance.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fullfed.methods.candidates import AlongCandidates, Candidates
from fullfed.methods.composition import Composition
from fullfed.methods.schedules import SampledCohort
from fullfed.methods.scopes import Everything
from fullfed.methods.seeds import SeedsAndScalars
from fullfed.methods.setting import Setting
from fullfed.methods.steps import ConstantStep
from fullfed.sketch.directions import Distribution


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
    candidates = Candidates(setting.seed, options.seeds, options.distribution)
    rate = setting.optimizer.learning_rate
    return Composition(
        setting=setting,
        scope=Everything(),
        local=AlongCandidates(candidates, options.perturbation, rate),
        codec=SeedsAndScalars(candidates, rate, setting.work, by_importance),
        step=ConstantStep(1.0),
        schedule=SampledCohort(setting.seed, setting.clients, setting.cohort_size),
        sets_aside=True,  # a visit in the memory of inference, as published
    )
