"""Three methods that train LoRA adapters on the clients, and differ in what the server averages.

FedIT (Zhang et al. 2023, arXiv 2305.05644; published code: Shepherd):

    A_{r+1} = sum_i n_i A_r^(i) / sum_i n_i,    B_{r+1} = sum_i n_i B_r^(i) / sum_i n_i

Each factor is averaged by itself. The mean of B times the mean of A is not the mean of what
clients learned, B A; the other two mend that.

FFA-LoRA (Sun et al. 2024, arXiv 2403.12313):

    A stays as it was drawn,    B_{r+1} = sum_i n_i B_r^(i) / sum_i n_i

With one A for all, the mean of B times A is the mean of the clients' products, exactly, and half
as much is sent.

FLoRA (Wang et al. 2024, arXiv 2409.05976):

    W_{r+1} = W_r + alpha / rank * sum_i p_i B_r^(i) A_r^(i),    p_i = n_i / sum_j n_j

An update holds the clients' factors one beside another, which multiplied are the mean of their
products. Everybody adds that to the frozen matrices; then B is 0 again and A is drawn anew.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fullfed.methods.averaging import averaging
from fullfed.methods.codecs.stacked import Stacked
from fullfed.methods.composition import Composition
from fullfed.methods.scopes import A, Adapters, B, LoraOptions, W, adapted, merge
from fullfed.methods.setting import Setting


class FrozenA(Adapters):
    """Of the factors only B trains."""

    def trained(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return {name: p for name, p in model.named_parameters() if name.endswith(B)}


class Folded(Adapters):
    """Both factors train; what an update changes are the matrices under them, and A.

    B is 0 outside of visits, so there is no adapter to save.
    """

    def replicated(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Of every target its matrix W, as (out, in), and its factor A."""
        parameters = dict(model.named_parameters())
        replicated: dict[str, Tensor] = {}
        for target in adapted(parameters):
            matrix = parameters[target + W].detach()
            transposed = isinstance(model.get_submodule(target).base_layer, Conv1D)
            replicated[target + W] = matrix.T if transposed else matrix
            replicated[target + A] = parameters[target + A]
        return replicated

    def detach(self, model: PreTrainedModel, folder: Path) -> None:
        merge(model)


def build_fedit(setting: Setting, options: LoraOptions) -> Composition:
    return averaging(setting, scope=Adapters(setting.seed, options))


def build_ffa_lora(setting: Setting, options: LoraOptions) -> Composition:
    return averaging(setting, scope=FrozenA(setting.seed, options))


def build_flora(setting: Setting, options: LoraOptions) -> Composition:
    codec = Stacked(seed=setting.seed, scaling=options.scaling)
    return averaging(setting, scope=Folded(setting.seed, options), codec=codec)
