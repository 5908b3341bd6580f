"""What is particular to the numba backend: compiled code, imports, threads, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from numba import njit

from fullfed.sketch import SignBasis, Stream, cpu, dense_cpu, perturb_, sign_cpu


@pytest.mark.parametrize(
    "kernel", [sign_cpu.project, sign_cpu.reconstruct, dense_cpu.products, dense_cpu.combine]
)
def test_kernels_contain_no_fused_multiply_add(kernel):
    SignBasis(seed=1, round=1, coordinates=3).project([torch.ones(9)], weights=[0.3])
    for distribution in ("rademacher", "gaussian"):
        perturb_([torch.ones(9)], Stream(1, 4), 0.1, distribution)
    fresh = njit(kernel.py_func)
    for signature in kernel.signatures:
        fresh.compile(signature)
    for assembly in fresh.inspect_asm().values():
        assert "fmadd" not in assembly
        assert "fmla" not in assembly


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ, capture_output=True, text=True
    )
    return done.stdout


def test_importing_the_package_loads_no_compiler():
    run(
        "import sys, fullfed.sketch as s, torch\n"
        "loaded = {'numba', 'triton', 'pydantic'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "basis = s.SignBasis(seed=1, round=1, coordinates=2)\n"
        "basis.project([torch.ones(5)], backend='reference')\n"
        "assert 'numba' not in sys.modules"
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("coordinates", [2**8, 2**18])
def test_memory_beyond_inputs_and_result_is_under_two_percent(coordinates):
    """The peak of a process's resident memory, reset after a first, small call."""
    grown = run(
        "import re, torch\n"
        "from pathlib import Path\n"
        "from fullfed.sketch import SignBasis\n"
        "torch.set_num_threads(2)\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', "
        "Path('/proc/self/status').read_text())[1]) * 1024\n"
        "small, delta, weights = (torch.ones(n) for n in (1 << 20, 1 << 26, 1 << 26))\n"
        "def both(delta, weights, k):\n"
        "    basis = SignBasis(seed=1, round=1, coordinates=k)\n"
        "    basis.reconstruct_([weights], basis.project([delta]))\n"
        "both(small, small, 2**8)\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"
        "start = peak()\n"
        f"both(delta, weights, {coordinates})\n"
        "print(peak() - start)"
    )
    assert int(grown) - 4 * coordinates < 0.02 * 4 * 2**26


def test_a_forked_process_gets_threads_of_its_own():
    with mock.patch.object(os, "getpid", return_value=-1):
        pool = cpu._pool(2, os.getpid())
    assert pool is not cpu._pool(2, os.getpid())
