"""Every benchmark can at least be begun: what it takes from the package is there."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(file.name for file in BENCHMARKS.glob("*.py")))
def test_a_benchmark_is_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    stems = [file.stem for file in BENCHMARKS.glob("*.py")]
    # Folders of tests have names of benchmarks: each is there for its own.
    others = {stem: sys.modules.pop(stem) for stem in stems if stem in sys.modules}
    try:
        found = runpy.run_path(str(BENCHMARKS / name), run_name="imported")
    finally:
        for stem in stems:
            sys.modules.pop(stem, None)
        sys.modules.update(others)
    assert found["__doc__"]
