"""The machine a run is on: versions, processor, and the memory that this process has needed."""

from __future__ import annotations

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
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return int(torch.cuda.max_memory_allocated())
    # What getrusage reports is carried over when a process starts a program, so that one
    # started by a larger process would show the larger one's peak.
    if _STATUS.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
        return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
