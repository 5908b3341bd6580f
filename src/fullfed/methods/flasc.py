"""FLASC: LoRA adapters of which little is sent, either way (Kuo et al. 2024, "Federated LoRA with
sparse communication", arXiv 2406.05233, Algorithm 1).

    clients:   P_i = the largest numbers of P_r, by absolute value; 0 elsewhere
               P_i' = T first-order steps from P_i, on all numbers
               send the largest numbers of P_i' - P_i
    everyone:  P_{r+1} = a step of AdamW at the server for the mean of what was sent

P are the numbers of all adapters together. docs/methods/flasc.md says what differs.
"""

from __future__ import annotations

from dataclasses import dataclass

from fullfed.methods.averaging import averaging
from fullfed.methods.codecs.largest import kept_of
from fullfed.methods.codecs.topk import TopK
from fullfed.methods.composition import Composition
from fullfed.methods.fedopt import check_rate
from fullfed.methods.scopes import Adapters, LoraOptions
from fullfed.methods.server_optimizers import AdamW
from fullfed.methods.setting import Setting


@dataclass(frozen=True)
class FlascOptions(LoraOptions):
    """LoRA's options, and

    Attributes:
        up: the share of the adapters' numbers that a client sends.
        down: the share that a visit begins with; the others are 0 then.
        learning_rate: of the server's AdamW.
        weight_decay: of the server's AdamW.
    """

    up: float = 0.25
    down: float = 0.25
    learning_rate: float = 1e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, share in (("up", self.up), ("down", self.down)):
            if not 0 < share <= 1:
                raise ValueError(f"{name} is a share, above 0 and at most 1")
        check_rate(self.learning_rate)
        if not 0 <= self.weight_decay < 1:
            raise ValueError("weight_decay is a number, at least 0 and below 1")


def build(setting: Setting, options: FlascOptions) -> Composition:
    return averaging(
        setting,
        scope=Adapters(setting.seed, options),
        codec=TopK(count=kept_of(options.up, setting.elements), bits=32),
        optimizer=AdamW(options.learning_rate, weight_decay=options.weight_decay),
        begins=options.down,
    )
