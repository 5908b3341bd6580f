"""Every method there is, by the name a recipe calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fullfed.methods import (
    fed_sb,
    fedavg,
    fedcybgd,
    fedit,
    fedkseed,
    fedprox,
    fedzo,
    ferret,
    ffa_lora,
    flora,
)
from fullfed.methods.adapters import Adapters, LoraOptions
from fullfed.methods.composition import Composition
from fullfed.methods.scopes import Everything, Scope
from fullfed.methods.setting import Setting
from fullfed.methods.stacked import Folded


def _everything(seed: int, options: Any) -> Scope:
    return Everything()


@dataclass(frozen=True)
class Entry:
    """A method as the catalogue shows it.

    Attributes:
        title, paper: for people.
        composition: scope x local optimizer x codec x schedule, in words.
        options: the dataclass of the method's own options.
        build: makes the method for a federation from its options.
        learning_rate: where a search for the local learning rate starts; None for the recipe's,
            which is meant for gradients of every parameter.
        scope: from the recipe's seed and the options, which parameters train.
    """

    title: str
    paper: str
    composition: str
    options: type[Any]
    build: Callable[[Setting, Any], Composition]
    learning_rate: float | None = None
    scope: Callable[[int, Any], Scope] = _everything


METHODS: Mapping[str, Entry] = {
    "fedavg": Entry(
        title="FedAvg",
        paper="McMahan et al. 2017, arXiv 1602.05629",
        composition="everything x first-order x dense x sampled cohort",
        options=fedavg.FedAvgOptions,
        build=fedavg.build,
    ),
    "fedprox": Entry(
        title="FedProx",
        paper="Li et al. 2020, arXiv 1812.06127",
        composition="everything x first-order, proximal x dense x sampled cohort",
        options=fedprox.FedProxOptions,
        build=fedprox.build,
    ),
    "ferret": Entry(
        title="Ferret",
        paper="Shu et al. 2024, arXiv 2409.06277",
        composition="everything x first-order x sketch x sampled cohort",
        options=ferret.FerretOptions,
        build=ferret.build,
    ),
    "fedkseed": Entry(
        title="FedKSeed",
        paper="Qin et al. 2024, arXiv 2312.06353",
        composition="everything x zeroth-order x seeds and scalars x sampled cohort",
        options=fedkseed.FedKSeedOptions,
        build=fedkseed.build,
        learning_rate=1e-4,
    ),
    "fedkseed-pro": Entry(
        title="FedKSeed-Pro",
        paper="Qin et al. 2024, arXiv 2312.06353",
        composition="everything x zeroth-order x seeds and scalars x sampled cohort",
        options=fedkseed.FedKSeedOptions,
        build=fedkseed.build_pro,
        learning_rate=1e-4,
    ),
    "fedcybgd": Entry(
        title="FedCyBGD",
        paper="Wang et al. 2024, arXiv 2406.11187",
        composition="one block x first-order x dense, compressed x cycle",
        options=fedcybgd.FedCyBGDOptions,
        build=fedcybgd.build,
    ),
    "cyclic-ferret": Entry(
        title="Cyclic Ferret",
        paper="no paper; see docs/methods/fedcybgd.md",
        composition="one block x first-order x sketch x cycle",
        options=fedcybgd.CyclicFerretOptions,
        build=fedcybgd.build_cyclic_ferret,
    ),
    "fedzo": Entry(
        title="FedZO",
        paper="Fang et al. 2022, arXiv 2201.09531",
        composition="everything x zeroth-order, spheres x dense x sampled cohort",
        options=fedzo.FedZOOptions,
        build=fedzo.build,
        learning_rate=1e-4,
    ),
    "fedit": Entry(
        title="FedIT",
        paper="Zhang et al. 2023, arXiv 2305.05644",
        composition="LoRA x first-order x dense x sampled cohort",
        options=LoraOptions,
        build=fedit.build,
        scope=Adapters,
    ),
    "flora": Entry(
        title="FLoRA",
        paper="Wang et al. 2024, arXiv 2409.05976",
        composition="LoRA, folded in x first-order x stacked x sampled cohort",
        options=LoraOptions,
        build=flora.build,
        scope=Folded,
    ),
    "ffa-lora": Entry(
        title="FFA-LoRA",
        paper="Sun et al. 2024, arXiv 2403.12313",
        composition="LoRA, B only x first-order x dense x sampled cohort",
        options=LoraOptions,
        build=ffa_lora.build,
        scope=ffa_lora.FrozenA,
    ),
    "fed-sb": Entry(
        title="Fed-SB",
        paper="Singhal et al. 2025, arXiv 2502.15436",
        composition="LoRA, R between fixed factors x first-order x dense x sampled cohort",
        options=fed_sb.FedSBOptions,
        build=fed_sb.build,
        scope=fed_sb.scope,
    ),
}
