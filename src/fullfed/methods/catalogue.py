"""Every method there is, by the name a recipe calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fullfed.methods import fedavg, ferret
from fullfed.methods.composition import Composition
from fullfed.methods.setting import Setting


@dataclass(frozen=True)
class Entry:
    """A method as the catalogue shows it.

    Attributes:
        title, paper: for people.
        composition: scope x local optimizer x codec x schedule, in words.
        options: the dataclass of the method's own options.
        build: makes the method for a federation from its options.
    """

    title: str
    paper: str
    composition: str
    options: type[Any]
    build: Callable[[Setting, Any], Composition]


METHODS: Mapping[str, Entry] = {
    "fedavg": Entry(
        title="FedAvg",
        paper="McMahan et al. 2017, arXiv 1602.05629",
        composition="everything x first-order x dense x sampled cohort",
        options=fedavg.FedAvgOptions,
        build=fedavg.build,
    ),
    "ferret": Entry(
        title="Ferret",
        paper="Shu et al. 2024, arXiv 2409.06277",
        composition="everything x first-order x sketch x sampled cohort",
        options=ferret.FerretOptions,
        build=ferret.build,
    ),
}
