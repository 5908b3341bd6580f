"""What a recipe says of a sketch, and how many coordinates that makes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from pydantic import StrictInt

from fullfed.config_values import NOT_BOTH, parse_bytes
from fullfed.methods.codecs.numbers import Numbers
from fullfed.sketch import BITS, affordable, code_of

# Most bytes of a report that are not coordinates, whatever its numbers (docs/messages.md): 25 of
# its fields, 67 of what the server step measures, 28 of the tensors' kinds, 4 of the first scale.
REPORT_HEADER = 124


@dataclass(frozen=True)
class SketchOptions:
    """
    Attributes:
        coordinates (numbers): K, that a client sends; in place of upload.
        upload (bytes): of a client's report, such as "32KiB", from which K and its code follow.
        bits (bits): of each coordinate, where K is given: 1 to 4 or 32, which is float32.
        basis: "sign" (ours: one pass over memory whatever K is) or "normal" (the Ferret paper's).
        seeds: each "client"'s own directions, as in the paper (noise averages out; everybody
            downloads K numbers for each client of the cohort), or "shared" ones (K numbers).
        scales: whether what is reconstructed has its noise where the loss is flat: "auto" (for a
            local optimizer that changes flat and steep parameters alike, as Adam and its kin do;
            not for SGD), "curvature" (always) or "none".
    """

    coordinates: int | None = None
    upload: str | StrictInt | None = None
    bits: int | None = None
    basis: Literal["sign", "normal"] = "sign"
    seeds: Literal["client", "shared"] = "client"
    scales: Literal["auto", "curvature", "none"] = "auto"

    def __post_init__(self) -> None:
        if (self.coordinates is None) == (self.upload is None):
            both = f", {NOT_BOTH}" if self.upload is not None else ""
            raise ValueError(f"give coordinates or upload{both}")
        if self.upload is not None:
            parse_bytes(self.upload)
        if self.coordinates is not None and self.coordinates < 1:
            raise ValueError("coordinates is at least 1")
        if self.bits not in (None, *BITS, 32):
            raise ValueError(f"bits is 1 to {BITS[-1]}, or 32")
        if self.upload is not None and self.bits is not None:
            raise ValueError("bits goes with coordinates; from upload it follows")
        if self.basis == "normal" and self.bits not in (None, 32):
            raise ValueError("the normal basis sends float32, as published; leave bits out")
        if self.basis == "normal" and self.scales == "curvature":
            raise ValueError("the normal basis has no scales; take basis = 'sign'")


@functools.lru_cache
def amount(seed: int, options: SketchOptions, most: int) -> tuple[int, Numbers]:
    """At most ``most`` coordinates and how they are sent; none where the upload is too small."""
    if options.coordinates is not None:
        bits = options.bits or 32
        return options.coordinates, Numbers(seed, None if bits == 32 else code_of(bits))
    assert options.upload is not None
    room = parse_bytes(options.upload) - REPORT_HEADER
    count, code = min(room // 4, most), None
    if options.basis == "sign" and room > 0:
        # The mean of coordinates on shared directions is coded once more.
        count, code = affordable(room, most, 2 if options.seeds == "shared" else 1)
    return count, Numbers(seed, code)
