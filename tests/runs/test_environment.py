"""The memory a run says it needed is its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fullfed.runs import environment
from fullfed.runs.environment import PeakMemory, peak_memory_bytes

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


def in_use(mebibytes: int) -> None:
    torch.ones(mebibytes << 18)  # float32


@pytest.mark.skipif(not environment._CLEAR.exists(), reason="the system does not tell")
def test_each_part_has_a_peak_of_its_own_and_the_largest_stays() -> None:
    in_use(400)  # before there were parts
    peaks, before = PeakMemory(), peak_memory_bytes()
    peaks.begin("visit")
    in_use(150)
    peaks.begin("aggregate")
    in_use(40)
    peaks.begin("visit")  # which goes on
    in_use(20)
    peaks.begin("evaluate")
    found = peaks.end()
    assert list(found) == ["visit", "aggregate", "evaluate"]
    rest = found["evaluate"]
    assert rest is not None
    mebibytes = {part: ((peak or 0) - rest) / 2**20 for part, peak in found.items()}
    assert mebibytes == pytest.approx({"visit": 150, "aggregate": 40, "evaluate": 0}, abs=8)
    assert peaks.overall >= before > max(peak or 0 for peak in found.values())
    assert peaks.end() == {}


@pytest.mark.skipif(not environment._CLEAR.exists(), reason="the system does not tell")
def test_memory_that_was_freed_is_not_of_the_next_part() -> None:
    """Pieces below the allocator's threshold stay with it, as a visit's activations do."""
    peaks = PeakMemory()
    peaks.begin("visit")
    pieces, kept = [bytearray(b"1" * 100_000) for _ in range(3000)], list[bytearray]()
    for _ in range(3):
        kept.append(pieces.pop())  # at the heap's end
    del pieces
    peaks.begin("evaluate")
    found = peaks.end()
    assert (found["visit"] or 0) - (found["evaluate"] or 0) > 250 << 20


def test_where_the_system_cannot_tell_parts_have_no_peak_and_all_together_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than the peak of everything before."""
    monkeypatch.setattr(environment, "_CLEAR", tmp_path / "none" / "clear_refs")
    peaks = PeakMemory()
    peaks.begin("visit")
    in_use(20)
    peaks.begin("aggregate")
    assert peaks.end() == {"visit": None, "aggregate": None}
    assert peaks.overall > 20 << 20
