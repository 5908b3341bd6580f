"""What is particular to the numba backend: compiled code, imports, threads, memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from numba import njit

from fullfed.sketch import (
    GroupArgmax,
    LloydMax,
    NormalBasis,
    SignBasis,
    Stream,
    accumulate_,
    cpu,
    cpu_codes,
    cpu_dense,
    cpu_numbers,
    cpu_sign,
    perturb_,
)
from sketch.models import same_bits, scales_of


@pytest.mark.parametrize(
    "kernel",
    [
        *(cpu_sign.project, cpu_sign.reconstruct),
        *(cpu_dense.products, cpu_dense.add_combination),
        *(cpu_codes.encode, cpu_codes.decode),
    ],
)
def test_kernels_contain_no_fused_multiply_add(kernel):
    basis = SignBasis(seed=1, round=1, coordinates=3)
    basis.reconstruct_([torch.ones(9)], basis.project([torch.ones(9)]), scale=0.3)
    NormalBasis(1, 1, (range(1),), (1,)).project([torch.ones(9)])
    scales = scales_of([torch.ones(9)], 3)
    basis.reconstruct_(
        [torch.ones(9)], basis.project([torch.ones(9)], scales=scales), scales=scales
    )
    for distribution in ("rademacher", "gaussian"):
        perturb_([torch.ones(9)], Stream(1, 4), 0.1, distribution)
        perturb_([torch.ones(9)], Stream(1, 4), 0.1, distribution, scales=scales)
        accumulate_([torch.ones(9)], [Stream(1, 4)], [0.1], distribution)
    for code in (GroupArgmax(1), GroupArgmax(4), LloydMax(2)):
        code.encode(torch.ones(9), Stream(1, 4)).numbers  # noqa: B018
    fresh = njit(kernel.py_func)
    assert kernel.signatures
    scaled = [signature for signature in kernel.signatures if "Scaling" in str(signature)]
    for signature in {*kernel.signatures[:2], *scaled[:1]}:  # others differ in conversions only
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
        "y = basis.project([torch.ones(5)], backend='reference')\n"
        "sent = s.code_of(1).encode(y, s.Stream(1, 17), backend='reference')\n"
        "basis.reconstruct_([torch.ones(5)], sent, backend='reference')\n"
        "assert 'numba' not in sys.modules",
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "k", "itemsize"),
    [("plain", 2**18, 4), ("strided", 2**8, 4), ("bfloat16", 2**8, 2), ("scaled", 2**8, 4)],
)
def test_memory_beyond_inputs_and_result_is_under_two_percent(kind, k, itemsize):
    """Of the tensor, in its own dtype."""
    grown = run(str(Path(__file__).parent / "peak_memory.py"), kind, str(k))
    assert int(grown) < 0.02 * itemsize * 2**26


def test_a_forked_process_gets_threads_of_its_own():
    with mock.patch.object(os, "getpid", return_value=-1):
        pool = cpu._pool(2, os.getpid())
    assert pool is not cpu._pool(2, os.getpid())


def test_a_kernel_is_compiled_anew_when_a_function_it_inlines_changes(tmp_path):
    """In another file, whose size and time stamp stay what they were: the change is one digit."""
    package = Path(cpu.__file__).parents[1]
    copy = shutil.copytree(package, tmp_path / "fullfed", ignore=shutil.ignore_patterns("*.nb?"))
    numbers, kernels = (copy / "sketch" / name for name in ("cpu_numbers.py", "cpu_dense.py"))
    times = {file: file.stat().st_mtime_ns for file in (numbers, kernels)}
    script = (
        "import torch, fullfed.sketch as s\n"
        "w = [torch.zeros(256, dtype=torch.bfloat16)]\n"
        "s.round_(w, [torch.full((256,), 0.3)], s.Stream(1, 10))\n"
        "print(s.__file__, int(w[0].view(torch.int16).sum(dtype=torch.int64)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)

    def result() -> str:
        done = subprocess.run(
            [sys.executable, "-c", script],
            **{"env": environment, "check": True, "capture_output": True, "text": True},
        )
        return done.stdout

    first = result()
    assert str(tmp_path) in first
    assert first == result()
    compiled = {file.name for file in (copy / "sketch/__pycache__").glob("*.nbc")}
    assert any("cpu_dense.round_rows" in name for name in compiled)
    numbers.write_text(numbers.read_text().replace("0xD2511F53", "0xD2511F55"))
    for file, stamp in times.items():
        os.utime(file, ns=(stamp, stamp))
    assert result() != first  # Philox multiplies by another number now


HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.int16)


def test_every_float16_is_widened():
    @njit
    def widen(stored, wide):
        for i in range(stored.size):
            wide[i] = cpu_numbers.widen(stored[i])

    wide = np.empty(HALVES.size, np.float32)
    widen(HALVES, wide)
    expected = HALVES.view(np.float16).astype(np.float32)
    nan = np.isnan(expected)
    assert np.array_equal(wide[~nan].view(np.uint32), expected[~nan].view(np.uint32))
    assert np.isnan(wide[nan]).all()


def test_float32s_are_narrowed_to_the_nearest():
    """All float16, what lies beside them and halfway between, and numbers of every size."""

    @njit
    def narrow(wide, stored):
        for i in range(wide.size):
            stored[i] = cpu_numbers.narrow(wide[i], stored[i])

    exact = HALVES.view(np.float16).astype(np.float32).view(np.uint32).astype(np.int64)
    offsets = np.array([-0x1000, -1, 0, 1, 0xFFF, 0x1000, 0x1001])
    near = (exact[:, None] + offsets).ravel() % 2**32
    anywhere = np.random.default_rng(0).integers(0, 2**32, 1 << 18)
    wide = np.concatenate([near, anywhere]).astype(np.uint32).view(np.float32)
    stored = np.empty(wide.size, np.int16)
    narrow(wide, stored)
    with np.errstate(over="ignore"):
        expected = wide.astype(np.float16)
    nan = np.isnan(expected)
    assert np.array_equal(stored[~nan], expected[~nan].view(np.int16))
    assert (stored[nan] == 0x7E00).all()


@pytest.mark.parametrize("size", [1, 1000])
def test_a_transform_of_a_whole_block_is_that_of_its_levels(size):
    """Several levels in one pass make the bits of one at a time."""
    x = torch.randn(65_536, generator=torch.Generator().manual_seed(size)) * size
    for fast, half, stop in (
        (cpu_codes.transform_neighbours, 1, 256),
        (cpu_codes.transform_distant, 256, 65_536),
    ):
        own, plain = x.clone(), x.clone()
        fast(own.numpy(), 65_536)
        cpu_codes.levels(plain.numpy(), 65_536, half, stop)
        assert same_bits([own], [plain])
