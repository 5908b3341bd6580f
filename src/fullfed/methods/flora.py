"""FLoRA: Wang et al., "FLoRA: Federated fine-tuning large language models with heterogeneous
low-rank adaptations" (arXiv 2409.05976).

    W_{r+1} = W_r + alpha / rank * sum_i p_i B_r^(i) A_r^(i),    p_i = n_i / sum_j n_j

An update holds the clients' factors one beside another, which multiplied are the mean of their
products. Everybody adds that to the frozen matrices; then B is 0 again and A is drawn anew.
"""

from __future__ import annotations

from fullfed.methods.adapters import LoraOptions
from fullfed.methods.composition import Composition
from fullfed.methods.local import ByGradients
from fullfed.methods.schedules import SampledCohort
from fullfed.methods.setting import Setting
from fullfed.methods.stacked import Folded, Stacked
from fullfed.methods.steps import ConstantStep


def build(setting: Setting, options: LoraOptions) -> Composition:
    return Composition(
        setting=setting,
        scope=Folded(setting.seed, options),
        local=ByGradients(setting.optimizer),
        codec=Stacked(setting.shapes, setting.seed, options.scaling),
        step=ConstantStep(1.0),
        schedule=SampledCohort(setting.seed, setting.clients, setting.cohort_size),
    )
