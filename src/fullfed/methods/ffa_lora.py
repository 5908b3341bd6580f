"""FFA-LoRA: Sun et al., "Improving LoRA in privacy-preserving federated learning"
(arXiv 2403.12313).

    A stays as it was drawn,    B_{r+1} = sum_i n_i B_r^(i) / sum_i n_i

With one A for all, the mean of B times A is the mean of the clients' products, exactly, and half
as much is sent.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from fullfed.methods.adapters import Adapters, B, LoraOptions
from fullfed.methods.composition import Composition
from fullfed.methods.dense import Dense
from fullfed.methods.local import ByGradients
from fullfed.methods.schedules import SampledCohort
from fullfed.methods.setting import Setting
from fullfed.methods.steps import ConstantStep


class FrozenA(Adapters):
    """Of the factors only B trains."""

    def trained(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return {name: p for name, p in model.named_parameters() if name.endswith(B)}


def build(setting: Setting, options: LoraOptions) -> Composition:
    return Composition(
        setting=setting,
        scope=FrozenA(setting.seed, options),
        local=ByGradients(setting.optimizer),
        codec=Dense(setting.shapes, "float32"),
        step=ConstantStep(1.0),
        schedule=SampledCohort(setting.seed, setting.clients, setting.cohort_size),
    )
