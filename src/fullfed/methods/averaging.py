"""Federated averaging, which most methods are but for one or two of its choices."""

from __future__ import annotations

from typing import Literal

from fullfed.methods.codecs.codec import Codec
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import LocalWork
from fullfed.methods.own_training import gradient_work
from fullfed.methods.schedules import SampledCohort
from fullfed.methods.scopes import Everything, Scope
from fullfed.methods.server_optimizers import ServerOptimizer
from fullfed.methods.server_step import server_step
from fullfed.methods.setting import Setting


def averaging(
    setting: Setting,
    *,
    scope: Scope | None = None,
    local: LocalWork | None = None,
    codec: Codec | None = None,
    step: float | Literal["auto"] = "auto",
    begins: float = 1.0,
    optimizer: ServerOptimizer | None = None,
    offload: bool = False,
) -> Composition:
    """Federated averaging, with what a method does otherwise: each round a cohort trains in
    parallel, with the recipe's optimizer and codec, and the server aggregates."""
    codec = codec or setting.codec
    return Composition(
        setting=setting,
        scope=scope or Everything(),
        local=local or gradient_work(setting),
        codec=codec,
        step=server_step(step, setting.seed, codec, setting.cohort_size),
        schedule=SampledCohort(setting.seed, setting.clients, setting.cohort_size),
        begins=begins,
        optimizer=optimizer,
        offload=offload,
    )
