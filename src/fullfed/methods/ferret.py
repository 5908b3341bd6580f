"""Ferret: FedAvg whose clients send their change as K numbers (Shu et al., "Ferret: Federated
full-parameter tuning at scale for large language models", arXiv 2409.06277, Algorithm 1).

    clients:   w_r^(i) = T first-order steps from w_r                        (eq. 3)
               y^(i)   = V'(w_r^(i) - w_r)                                    (eq. 6)
    everyone:  w_{r+1} = w_r + server_step * V mean_i y^(i)                   (eqs. 2, 7)

``basis = "normal"`` is the paper's: truncated normal vectors, block by block (eq. 8), at a cost
of K d. ``basis = "sign"`` is ours: one pass over memory whatever K is, and no larger error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fullfed.methods.averaging import averaging
from fullfed.methods.codecs.sketch import Sketch
from fullfed.methods.codecs.sketch_options import SketchOptions
from fullfed.methods.composition import Composition
from fullfed.methods.server_step import check_server_step
from fullfed.methods.setting import Setting


@dataclass(frozen=True)
class FerretOptions(SketchOptions):
    """The sketch's options, and

    Attributes:
        server_step: how much of the reconstruction is applied; "auto" is what the measured
            curvature allows: all of it where coordinates are many, less where they are few.
    """

    server_step: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_server_step(self.server_step)


def build(setting: Setting, options: FerretOptions) -> Composition:
    """Ferret for a federation.

    Raises:
        UserError: more coordinates than parameters, or an upload too small for one.
    """
    codec = setting.aggregation.coding(Sketch(setting.seed, options, table="method"))
    return averaging(setting, codec=codec, step=options.server_step)
