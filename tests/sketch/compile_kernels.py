"""Compiles every Triton kernel for an H100 or H200, no GPU needed, and looks for inexact code."""

from __future__ import annotations

import re
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fullfed.sketch import cuda, cuda_codes, cuda_kernels, cuda_rounding

SEGMENTS = {"table": "*i64", "factors": "*fp32", "count": "i32", "keys": "*i64"}
SIGN = {**SEGMENTS, "width": "i32", "depth": "i32", "counters": "i32", "first_group": "i32"}
DENSE = {"keys": "*i64", "firsts": "*i64", "series": "*fp32", "count": "i32"}
PROGRAM = 256  # the backend's larger one gives a thread more elements, with the same arithmetic
STORED = (tl.float32, tl.int16, tl.float16)


def check(kernel: Any, types: dict[str, str], **constants: object) -> None:
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()})
    built = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False}
    )
    inexact = re.findall(r"\bfma\.|\.ftz|\.approx", built.asm["ptx"])
    assert not inexact, (kernel.__name__, constants, set(inexact))


for stored in STORED:
    check(
        cuda_kernels.project,
        {**SIGN, "sums": "*fp32"},
        ROTATED=True,
        HAS_BEFORE=True,
        AFTER=stored,
        BEFORE=stored,
        PROGRAM=PROGRAM,
    )
    check(
        cuda_kernels.reconstruct,
        {**SIGN, "values": "*fp32"},
        ROTATED=stored != tl.float16,
        STORED=stored,
        PROGRAM=PROGRAM,
    )
for bits, terms in ((1, 0), (16, 2), (16, 19)):
    types = {**DENSE, "elements": "*fp32", "sums": "*fp32"}
    check(cuda_kernels.products, types, BITS=bits, TERMS=terms)
for (bits, terms, run), stored in zip(((1, 0, 32), (16, 2, 8), (16, 0, 8)), STORED, strict=True):
    types = {**SEGMENTS, **DENSE, "segments": "i32", "first_run": "i32", "scalars": "*fp32"}
    check(cuda_kernels.add_combination, types, BITS=bits, TERMS=terms, RUN=run, STORED=stored)
sums = {"sums": "*fp32", "parts": "*fp32", "rows": "i32", "count": "i32"}
check(cuda_kernels.add_in_order, sums, PROGRAM=128)
rounding = {"target": "*i16", "wide": "*fp32", "keys": "*i64", "offset": "i64", "length": "i64"}
check(cuda_rounding.round_rows, rounding)
dithering = {name: kind for name, kind in rounding.items() if name != "target"}
for dropped in (16, 13):
    check(cuda_rounding.dither_rows, dithering, DROPPED=dropped)
CODES = {"x": "*fp32", "codes": "*i16", "terms": "*fp64", "packed": "*u8", "words": "*i32"}
CODES |= {"keys": "*i64", "bounds": "*fp32", "levels": "*fp32", "scales": "*fp32", "scale": "fp32"}
CODES |= dict.fromkeys(("length", "total", "count", "part", "first_block"), "i32")
check(cuda_codes.sign_words, CODES)
for distant, first, height in ((False, True, 8), (True, False, 8), (True, True, 0)):
    options = {"DISTANT": distant, "SIGNS_FIRST": first, "LEVELS": height}
    check(cuda_codes.transform, CODES, **options, PROGRAM=cuda.TRANSFORMS)
for squared, lanes in ((True, 8), (False, 1)):
    types = {**CODES, "sums": "*fp64", "terms": "*fp32" if squared else "*fp64"}
    check(cuda_codes.add_in_order, types, SQUARED=squared, LANES=lanes)
check(cuda_codes.nearest_levels, CODES, BOUNDS=15, PROGRAM=PROGRAM)
check(cuda_codes.unpack_levels, CODES, BITS=3, PROGRAM=PROGRAM)
for group in (1, 64):
    check(cuda_codes.largest_of_groups, CODES, GROUP=group, PROGRAM=PROGRAM // group)
    options = {"BITS": group.bit_length(), "GROUP": group, "PROGRAM": PROGRAM // group}
    check(cuda_codes.unpack_groups, CODES, **options)
check(cuda_codes.pack, CODES, BITS=7, PROGRAM=PROGRAM)
