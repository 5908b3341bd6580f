"""The machine a run is on: versions, processor, and the memory that this process has needed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

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


_PARAMETERS_A_THREAD = 2_000_000


@contextmanager
def fitting_threads(model: nn.Module) -> Iterator[None]:
    """Inside, torch has no more threads than the model's operations are worth.

    Small ones are over before a second thread is awake, and where the machine is busy the first
    then waits for the second's turn on a core: ten steps of a model of a quarter of a million
    parameters took 0.6 s on one thread, and on two 0.7 to 3.5 s.
    """
    before = torch.get_num_threads()
    worth = sum(p.numel() for p in model.parameters()) // _PARAMETERS_A_THREAD
    torch.set_num_threads(max(min(before, worth), 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)
