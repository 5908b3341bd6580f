"""Writes byzfl.json: what byzfl's aggregators make of the vectors in test_robust.py.

    pip download --no-deps byzfl==0.0.11 && unzip byzfl-0.0.11-*.whl
    PYTHONPATH=. python tests/methods/make_byzfl.py     # needs scipy

byzfl's package imports torchvision and more, of which its aggregators use nothing: they are loaded
by themselves.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent


def vectors(count: int, length: int = 13) -> NDArray[np.float64]:
    """Around one point, the second and the last but one far from it."""
    rows = np.array([[np.sin(7 * i + 3 * j + i * j) for j in range(length)] for i in range(count)])
    rows += np.arange(length)
    rows[1] += 40.0
    rows[-2] *= -9.0
    return rows


def aggregators() -> Any:
    package = Path("byzfl").resolve()
    for name in ("byzfl", "byzfl.utils"):
        module = ModuleType(name)
        module.__path__ = [str(package / name.partition(".")[2])]
        sys.modules[name] = module
    spec = importlib.util.spec_from_file_location(
        "byzfl.aggregators.aggregators", package / "aggregators/aggregators.py"
    )
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def main() -> None:
    byzfl, made = aggregators(), {}
    for count in (5, 10):
        rows, liars = vectors(count), max(count // 5, 1)
        made[str(count)] = {
            "median": byzfl.Median()(rows).tolist(),
            "trimmed-mean": byzfl.TrMean(liars)(rows).tolist(),
            "krum": byzfl.MultiKrum(liars)(rows).tolist(),
            "geometric-median": byzfl.GeometricMedian(nu=1e-9, T=2000)(rows).tolist(),
        }
    (HERE / "byzfl.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
