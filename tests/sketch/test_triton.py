"""The Triton backend, in processes of its own.

Whether Triton interprets or compiles is settled when it is first imported, and other tests
may have imported it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run(*arguments: str, interpret: bool) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_every_operation_gives_the_references_bits():
    cases = [str(HERE / name) for name in ("triton_cases.py", "triton_coded_cases.py")]
    run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *cases,
        interpret=not torch.cuda.is_available(),
    )


def test_kernels_compile_for_hopper_without_fused_or_approximate_arithmetic():
    """Needs no GPU: Triton brings its own assembler."""
    run(str(HERE / "compile_kernels.py"), interpret=False)
