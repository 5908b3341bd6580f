"""FedAvg: McMahan et al., "Communication-efficient learning of deep networks from
decentralized data" (arXiv 1602.05629), Algorithm 1.

    w_{r+1} = w_r + server_step * (sum_i n_i w_r^(i) / sum_i n_i - w_r)

Clients train everything with first-order optimisation and send it whole; in bfloat16 they
send the change instead, in half the bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fullfed.methods.composition import Composition
from fullfed.methods.dense import Dense
from fullfed.methods.local import ByGradients
from fullfed.methods.schedules import SampledCohort
from fullfed.methods.scopes import Everything
from fullfed.methods.setting import Setting
from fullfed.methods.steps import ConstantStep


@dataclass(frozen=True)
class FedAvgOptions:
    """
    Attributes:
        precision: of what is sent, both ways.
        server_step: how far the model goes towards the clients' mean; "auto" is all the way.
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    server_step: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.server_step != "auto" and not 0 < self.server_step < math.inf:
            raise ValueError("server_step is a positive number or 'auto'")


def build(setting: Setting, options: FedAvgOptions) -> Composition:
    step = 1.0 if options.server_step == "auto" else float(options.server_step)
    return Composition(
        setting=setting,
        scope=Everything(),
        local=ByGradients(setting.optimizer),
        codec=Dense(setting.shapes, options.precision),
        step=ConstantStep(step),
        schedule=SampledCohort(setting.seed, setting.clients, setting.cohort_size),
    )
