"""benchmarks/energy.py: what is left of a change, and noise that cancels in pairs."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "energy.py"))


def test_a_matrix_is_left_by_its_largest_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    large, small = (torch.randn(6, 1, generator=generator) @ torch.randn(1, 5, generator=generator)
                    for _ in range(2))  # fmt: skip
    change = {"matrix": 100 * large, "vector": torch.ones(3)}
    found = BENCHMARK["of_rank"](1)(change)
    torch.testing.assert_close(found["matrix"], change["matrix"])
    assert found["vector"] is change["vector"]
    near = BENCHMARK["of_rank"](1)({"matrix": 100 * large + small})["matrix"]
    assert torch.linalg.matrix_rank(near) == 1
    assert (near - 100 * large).norm() < small.norm()


def test_the_mean_is_by_name() -> None:
    found = BENCHMARK["mean"]([{"a": torch.tensor([1.0])}, {"a": torch.tensor([4.0])}])
    assert found["a"].tolist() == [2.5]
