"""What a comparison was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
import transformers


def environment(jobs: int, threads: int) -> dict[str, Any]:
    """Versions, processor, and how the work was spread over it.

    Args:
        jobs: processes at once.
        threads: of torch in each.
    """
    return {
        "fullfed": importlib.metadata.version("fullfed"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "jobs": jobs,
        "threads": threads,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")  # Linux
    if information.exists() and (
        name := re.search(r"model name\s*:\s*(.+)", information.read_text())
    ):
        return name[1]
    return platform.processor() or platform.machine()
