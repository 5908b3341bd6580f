"""Ferret: Shu et al., "Ferret: Federated full-parameter tuning at scale for large language
models" (arXiv 2409.06277), Algorithm 1.

    clients:   w_r^(i) = T first-order steps from w_r                        (eq. 3)
               y^(i)   = V'(w_r^(i) - w_r)                                    (eq. 6)
    everyone:  w_{r+1} = w_r + server_step * V mean_i y^(i)                   (eqs. 2, 7)

``basis = "normal"`` is the paper's: truncated normal vectors, block by block (eq. 8), at a cost
of K d. ``basis = "sign"`` is ours: one pass over memory whatever K is, and no larger error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fullfed.config import parse_bytes
from fullfed.errors import UserError
from fullfed.methods.bases import Signs, TruncatedNormals, blocks_of
from fullfed.methods.coding import Coding, Exact, InBits, coding
from fullfed.methods.composition import Composition
from fullfed.methods.curvature import CurvatureStep
from fullfed.methods.local import ByGradients
from fullfed.methods.schedules import SampledCohort
from fullfed.methods.scopes import Everything
from fullfed.methods.setting import Setting
from fullfed.methods.sketched import BasisFamily, Sketched
from fullfed.methods.steps import ConstantStep
from fullfed.sketch import BITS, affordable

REPORT_HEADER = 448  # most bytes of a report that are not coordinates, whatever its numbers


@dataclass(frozen=True)
class FerretOptions:
    """
    Attributes:
        coordinates: K, the numbers a client sends; or instead of it
        upload: the bytes of a client's report, such as "32KiB", from which K and its code
            follow.
        bits: of each of so many coordinates, 1 to 4 or 32, which is float32.
        basis: "sign" or "normal".
        seeds: each "client"'s own directions, as in the paper (noise averages out; everybody
            downloads K numbers for each client of the cohort), or "shared" ones (K numbers).
        server_step: how much of the reconstruction is applied, or "auto".
    """

    coordinates: int | None = None
    upload: str | None = None
    bits: int | None = None
    basis: Literal["sign", "normal"] = "sign"
    seeds: Literal["client", "shared"] = "client"
    server_step: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if (self.coordinates is None) == (self.upload is None):
            raise ValueError("give either coordinates or upload")
        if self.coordinates is not None and self.coordinates < 1:
            raise ValueError("coordinates is at least 1")
        if self.server_step != "auto" and not 0 < self.server_step < math.inf:
            raise ValueError("server_step is a positive number or 'auto'")
        if self.upload is not None:
            parse_bytes(self.upload)
        if self.bits not in (None, *BITS, 32):
            raise ValueError(f"bits is 1 to {BITS[-1]}, or 32")
        if self.upload is not None and self.bits is not None:
            raise ValueError("bits goes with coordinates; from upload it follows")
        if self.basis == "normal" and self.bits not in (None, 32):
            raise ValueError("the normal basis sends float32, as published; leave bits out")


def build(setting: Setting, options: FerretOptions) -> Composition:
    """Ferret for a federation.

    Raises:
        UserError: more coordinates than parameters, or a budget too small for one.
    """
    count, code = _amount(setting, options)
    if count > setting.elements:
        raise UserError(
            f"method.coordinates: {count} coordinates for a model of {setting.elements} "
            "parameters; ask for at most one per parameter."
        )
    sketch = Sketched(_family(setting, options, count), options.seeds, code)
    step = (
        CurvatureStep(setting.seed, sketch.worth, setting.cohort_size, options.seeds == "shared")
        if options.server_step == "auto"
        else ConstantStep(float(options.server_step))
    )
    return Composition(
        setting=setting,
        scope=Everything(),
        local=ByGradients(setting.optimizer),
        codec=sketch,
        step=step,
        schedule=SampledCohort(setting.seed, setting.clients, setting.cohort_size),
    )


def _amount(setting: Setting, options: FerretOptions) -> tuple[int, Coding]:
    """K and how coordinates travel."""
    if options.coordinates is not None:
        return options.coordinates, coding(setting.seed, options.bits or 32)
    room = parse_bytes(str(options.upload)) - REPORT_HEADER
    count, code = room // 4, None
    if options.basis == "sign" and room > 0:
        # The mean of coordinates on shared directions is coded once more.
        times = 2 if options.seeds == "shared" else 1
        count, code = affordable(room, setting.elements, times)
    if count < 1:
        raise UserError(
            f"method.upload: {options.upload} leaves no room for a coordinate beside the "
            f"{REPORT_HEADER} bytes of a report's header; raise it."
        )
    return count, InBits(setting.seed, code) if code else Exact()


def _family(setting: Setting, options: FerretOptions, count: int) -> BasisFamily:
    if options.basis == "sign":
        return Signs(setting.seed, count)
    tensors = [shape.numel() for shape in setting.shapes.values()]
    blocks = blocks_of(tensors)
    sizes = tuple(sum(tensors[n] for n in block) for block in blocks)
    if count < len(blocks):
        raise UserError(
            f"method.coordinates: {count} coordinates for {len(blocks)} blocks; the normal basis "
            "needs at least one a block, the sign basis does not."
        )
    return TruncatedNormals(setting.seed, count, blocks, sizes)
