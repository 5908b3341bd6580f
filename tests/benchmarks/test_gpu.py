"""benchmarks/gpu.sh, as far as it can be tried without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


def carried_out(*arguments: object, limit: str = "60") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "SHAPES": "tiny", "LIMIT": limit}
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_part_that_is_not_there_is_named_before_anything_is_run(tmp_path: Path) -> None:
    done = carried_out(tmp_path / "out", "bits", "speed")
    assert done.returncode == 2
    assert "there is no part speed; the parts are bits sketch" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_takes_too_long_is_said_and_the_next_part_begins(tmp_path: Path) -> None:
    done = carried_out(tmp_path, "overhead", "memory", limit="0.01")
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "gpu.md").read_text()
    assert report.count("It ended with status 124") == 2
    assert "--shapes tiny" in report
    assert '"device": "' in report
