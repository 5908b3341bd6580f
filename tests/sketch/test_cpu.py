"""What is particular to the numba backend: compiled code, imports, threads, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from numba import njit

from fullfed.sketch import (
    Largest,
    Rounded,
    SignBasis,
    Stream,
    decoding_cpu,
    dense_cpu,
    encoding_cpu,
    perturb_,
    sign_cpu,
    threads_cpu,
)


@pytest.mark.parametrize(
    "kernel",
    [
        *(sign_cpu.project, sign_cpu.reconstruct),
        *(dense_cpu.products, dense_cpu.add_combination),
        *(encoding_cpu.encode, decoding_cpu.decode),
    ],
)
def test_kernels_contain_no_fused_multiply_add(kernel):
    SignBasis(seed=1, round=1, coordinates=3).project([torch.ones(9)], weights=[0.3])
    for distribution in ("rademacher", "gaussian"):
        perturb_([torch.ones(9)], Stream(1, 4), 0.1, distribution)
    for code in (Largest(1), Largest(4), Rounded(2)):
        code.encode(torch.ones(9), Stream(1, 4)).numbers  # noqa: B018
    fresh = njit(kernel.py_func)
    for signature in kernel.signatures[:2]:  # others differ in conversions only
        fresh.compile(signature)
    for assembly in fresh.inspect_asm().values():
        assert "fmadd" not in assembly
        assert "fmla" not in assembly


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], check=True, env=os.environ, capture_output=True, text=True
    )
    return done.stdout


def test_importing_the_package_loads_no_compiler():
    run(
        "-c",
        "import sys, fullfed.sketch as s, torch\n"
        "loaded = {'numba', 'triton', 'pydantic'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "basis = s.SignBasis(seed=1, round=1, coordinates=2)\n"
        "basis.project([torch.ones(5)], backend='reference')\n"
        "assert 'numba' not in sys.modules",
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "k", "itemsize"),
    [("plain", 2**18, 4), ("weighted", 2**8, 4), ("stochastic", 2**8, 2)],
)
def test_memory_beyond_inputs_and_result_is_under_two_percent(kind, k, itemsize):
    """Of the tensor, in its own dtype. Weighted is strided too."""
    grown = run(str(Path(__file__).parent / "peak_memory.py"), kind, str(k))
    assert int(grown) < 0.02 * itemsize * 2**26


def test_a_forked_process_gets_threads_of_its_own():
    with mock.patch.object(os, "getpid", return_value=-1):
        pool = threads_cpu._pool(2, os.getpid())
    assert pool is not threads_cpu._pool(2, os.getpid())
