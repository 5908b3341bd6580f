"""The machine a run is on: versions, processor, and the memory that this process has needed."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

_STATUS = Path("/proc/self/status")  # Linux
_CLEAR = Path("/proc/self/clear_refs")  # Linux from 4.0 on
_PROCESSORS = Path("/proc/cpuinfo")  # Linux


def environment() -> dict[str, Any]:
    """Versions, system, processor and GPU."""
    return {
        "fullfed": importlib.metadata.version("fullfed"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def arithmetic(device: torch.device) -> dict[str, Any]:
    """What decides in which order a machine adds up: training elsewhere ends in other last bits."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "device": device.type,
        **gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    if _PROCESSORS.exists() and (
        name := re.search(r"model name\s*:\s*(.+)", _PROCESSORS.read_text())
    ):
        return name[1]
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """Peak memory so far: on a GPU what torch allocated there, otherwise the resident set."""
    if _on_gpu():
        return int(torch.cuda.max_memory_allocated())
    # What getrusage reports is carried over when a process starts a program, so that one
    # started by a larger process would show the larger one's peak.
    if _STATUS.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
        return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class PeakMemory:
    """The peaks of parts of this process's work, each by itself, and of all of it; a part is as
    large as the process that needed most for it.

    The system's own peak begins anew with each part, so one process can have one of these at work.
    """

    def __init__(self) -> None:
        self._part: str | None = None
        self._overall = 0
        self._peaks: dict[str, int | None] = {}
        self._workers: dict[int, int] = {}  # the most of each so far

    @property
    def overall(self) -> int:
        """The peak so far, in bytes: this process's, and each worker process's beside it."""
        return max(self._overall, peak_memory_bytes()) + sum(self._workers.values())

    def of_worker(self, place: int, peak: int | None, overall: int) -> None:
        """Count in what a worker process needed in a visit, which is a part of this round's.

        Args:
            place: of the process among those there are at once.
            peak: in the visit; None where the system does not tell.
            overall: so far.
        """
        self._workers[place] = max(self._workers.get(place, 0), overall)
        if peak is not None:
            self._peaks["visit"] = max(self._peaks.get("visit") or 0, peak)

    def begin(self, part: str) -> None:
        """What comes next belongs to ``part``, which may have begun before."""
        self._end_part()
        # A peak that cannot begin anew would be of everything before as well.
        self._part = part if _reset_peak() else None
        self._peaks.setdefault(part, None)

    def end(self) -> dict[str, int | None]:
        """The bytes of each part since the last call; None where the system does not tell."""
        self._end_part()
        peaks, self._peaks, self._part = self._peaks, {}, None
        return peaks

    def _end_part(self) -> None:
        now = peak_memory_bytes()
        self._overall = max(self._overall, now)
        if self._part is not None:
            self._peaks[self._part] = max(self._peaks[self._part] or 0, now)


def _on_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0


def _reset_peak() -> bool:
    """Have ``peak_memory_bytes`` begin anew at what is in use now; whether the system can."""
    if _on_gpu():
        torch.cuda.reset_peak_memory_stats()
        return True
    _return_freed()
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _return_freed() -> None:
    """Have glibc give back to the system what it keeps of freed memory: it would count as in use,
    and the part after a visit would seem to need what the visit did."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other libraries have none
    if trim is not None:
        trim(0)
