"""Small models have fewer threads."""

from __future__ import annotations

import pytest
import torch

from fullfed.training.threads import fitting_threads


@pytest.mark.parametrize(("parameters", "threads"), [(1_000, 1), (4_000_000, 2), (50_000_000, 4)])
def test_a_small_model_has_fewer_threads(parameters: int, threads: int) -> None:
    model = torch.nn.Linear(1, 1, device="meta")
    model.weight = torch.nn.Parameter(torch.empty(parameters, device="meta"))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with fitting_threads(model):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
