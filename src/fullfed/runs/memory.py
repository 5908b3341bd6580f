"""How much memory this process has needed."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")  # Linux


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
