"""FedAvg: clients train everything, the server averages (McMahan et al., "Communication-efficient
learning of deep networks from decentralized data", arXiv 1602.05629, Algorithm 1).

    w_{r+1} = w_r + server_step * (sum_i n_i w_r^(i) / sum_i n_i - w_r)

Clients send the trained weights whole, or what another codec makes of their change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fullfed.methods.averaging import averaging
from fullfed.methods.composition import Composition
from fullfed.methods.server_step import check_server_step
from fullfed.methods.setting import Setting


@dataclass(frozen=True)
class FedAvgOptions:
    """
    Attributes:
        server_step: how far the model goes towards the clients' mean; "auto" is all the way, or
            with a sketch what the measured curvature allows.
    """

    server_step: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_server_step(self.server_step)


def build(setting: Setting, options: FedAvgOptions) -> Composition:
    return averaging(setting, step=options.server_step)
