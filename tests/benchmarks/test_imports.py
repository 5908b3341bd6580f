"""Every benchmark can at least be begun: what it takes from the package is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# In a process of its own: benchmarks have names of folders of tests, and import much.
IMPORT_ALL = """
import runpy, sys
for path in sys.argv[1:]:
    assert runpy.run_path(path, run_name="imported")["__doc__"], path
"""


def test_benchmarks_are_imported() -> None:
    files = sorted(str(file) for file in BENCHMARKS.glob("*.py"))
    assert len(files) > 30
    command = [sys.executable, "-c", IMPORT_ALL, *files]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
