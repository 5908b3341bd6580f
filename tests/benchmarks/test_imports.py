"""Every benchmark can at least be begun: what it takes from the package is there."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(file.name for file in BENCHMARKS.glob("*.py")))
def test_a_benchmark_is_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = runpy.run_path(str(BENCHMARKS / name), run_name="imported")
    assert found["__doc__"]
