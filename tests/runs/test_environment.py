"""The memory a run says it needed is its own."""

from __future__ import annotations

import subprocess
import sys

import torch

from fullfed.runs.environment import peak_memory_bytes

LARGER = """
import subprocess, sys
block = b"1" * (1200 << 20)
tell = "from fullfed.runs.environment import peak_memory_bytes; print(peak_memory_bytes())"
subprocess.run([sys.executable, "-c", tell], check=True)
"""


def test_the_peak_grows_with_what_is_needed() -> None:
    before = peak_memory_bytes()
    block = torch.ones(before // 4 + (100 << 20))  # in float32 100 MiB more than all there was
    assert peak_memory_bytes() >= block.numel() * 4


def test_the_peak_is_not_that_of_the_process_that_started_this_one() -> None:
    told = subprocess.run([sys.executable, "-c", LARGER], check=True, capture_output=True)
    assert int(told.stdout) < 1200 << 20
