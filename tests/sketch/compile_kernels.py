"""Compiles every Triton kernel for an H100 or H200, no GPU needed, and looks for inexact code."""

from __future__ import annotations

import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fullfed.sketch import dense_cuda, sign_cuda

SIGN = {"offset": "i64", "length": "i64", "width": "i32", "first_group": "i32", "keys": "*i64"}
DENSE = {"piece": "*fp32", "keys": "*i64", "firsts": "*i64", "series": "*fp32", "count": "i32"}


def check(kernel: Any, types: dict[str, str], **constants: object) -> None:
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()})
    built = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False}
    )
    inexact = re.findall(r"\bfma\.|\.ftz|\.approx", built.asm["ptx"])
    assert not inexact, (kernel.__name__, constants, set(inexact))


for stored, bfloat, half in (("*fp32", 0, 0), ("*i16", 1, 0), ("*fp16", 0, 1)):
    check(
        sign_cuda.project,
        {**SIGN, "after": stored, "before": stored, "weight": "fp32", "sums": "*fp32"},
        ROTATED=True,
        HAS_BEFORE=True,
        AFTER_BFLOAT=bool(bfloat),
        BEFORE_BFLOAT=bool(bfloat),
        BLOCK=1024,
    )
    check(
        sign_cuda.reconstruct,
        {**SIGN, "elements": stored, "values": "*fp32", "scale": "fp32"},
        ROTATED=not half,
        BFLOAT=bool(bfloat),
        HALF=bool(half),
        BLOCK=1024,
    )
for bits, terms in ((1, 1), (16, 2), (16, 19)):
    check(dense_cuda.products, {**DENSE, "sums": "*fp32"}, BITS=bits, TERMS=terms)
for bits, terms, run in ((1, 1, 32), (16, 2, 8), (32, 1, 4)):
    types = {**DENSE, "rows": "i32", "scalars": "*fp32", "skipped": "i32"}
    check(dense_cuda.combine, types, BITS=bits, TERMS=terms, RUN=run)
sums = {"sums": "*fp32", "parts": "*fp32", "rows": "i32", "count": "i32"}
check(dense_cuda.add_in_order, sums, BLOCK=128)
rounding = {"target": "*i16", "wide": "*fp32", "keys": "*i64", "offset": "i64", "length": "i64"}
check(dense_cuda.round_rows, rounding)
