"""benchmarks/scales.py: curvature without what its rows or its columns say."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "scales.py"))


def test_rows_that_are_alike_have_their_mean() -> None:
    rows, columns = torch.tensor([1.0, 3.0]), torch.tensor([4.0, 0.0, 2.0])
    found = BENCHMARK["alike"]({"w": (rows, columns)}, rows=True, columns=False)["w"]
    assert found[0].tolist() == [2.0, 2.0]
    assert found[1].tolist() == columns.tolist()
    both = BENCHMARK["alike"]({"w": (rows, columns)}, rows=True, columns=True)["w"]
    assert both[1].tolist() == [2.0, 2.0, 2.0]
