"""FedIT: Zhang et al., "Towards building the federated GPT: Federated instruction tuning"
(arXiv 2305.05644); published code: Shepherd.

    A_{r+1} = sum_i n_i A_r^(i) / sum_i n_i,    B_{r+1} = sum_i n_i B_r^(i) / sum_i n_i

Clients train LoRA factors and the server averages each factor by itself. The mean of B times the
mean of A is not the mean of what clients learned, B A; flora.py and ffa_lora.py mend that.
"""

from __future__ import annotations

from fullfed.methods.adapters import Adapters, LoraOptions
from fullfed.methods.composition import Composition
from fullfed.methods.dense import Dense
from fullfed.methods.local import ByGradients
from fullfed.methods.schedules import SampledCohort
from fullfed.methods.setting import Setting
from fullfed.methods.steps import ConstantStep


def build(setting: Setting, options: LoraOptions) -> Composition:
    return Composition(
        setting=setting,
        scope=Adapters(setting.seed, options),
        local=ByGradients(setting.optimizer),
        codec=Dense(setting.shapes, "float32"),
        step=ConstantStep(1.0),
        schedule=SampledCohort(setting.seed, setting.clients, setting.cohort_size),
    )
