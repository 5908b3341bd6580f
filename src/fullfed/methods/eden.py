"""FedAvg whose clients send one bit for each number of their change (Vargaftik et al. 2022, "EDEN:
Communication-efficient and robust distributed mean estimation for federated learning", arXiv
2108.08842; at one bit it is DRIVE, Vargaftik et al. 2021, arXiv 2105.08339).

A change is rotated at random, each client's anew, until its numbers are near normal; each is then
sent as its sign (or one of 2**bits levels) beside one scale. A sketch of as many coordinates as the
model has parameters is that: its directions are a rotation, and its code is theirs. Below one bit a
number EDEN leaves numbers out at random, which Ferret's sketch does in fewer coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

from fullfed.methods.averaging import averaging
from fullfed.methods.codecs.sketch import Sketch
from fullfed.methods.codecs.sketch_options import SketchOptions
from fullfed.methods.composition import Composition
from fullfed.methods.setting import Setting
from fullfed.sketch import BITS


@dataclass(frozen=True)
class EdenOptions:
    """
    Attributes:
        bits (bits): of each number: 1 to 4.
    """

    bits: int = 1

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits is 1 to {BITS[-1]}")


def build(setting: Setting, options: EdenOptions) -> Composition:
    sketch = SketchOptions(coordinates=setting.elements, bits=options.bits, scales="none")
    return averaging(setting, codec=Sketch(setting.seed, sketch, table="method"))
