"""benchmarks/pruning.py: Wanda and DSnoT against loops written from the papers' formulas."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path

import pytest
import torch

from fullfed.data.batches import collate
from methods.tiny import samples
from training.architectures import make

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "pruning.py"))
Inputs, wanda, dsnot = BENCHMARK["Inputs"], BENCHMARK["wanda"], BENCHMARK["dsnot"]


def by_rows(
    weight: list[list[float]], x: list[list[float]], share: float, cycles: int
) -> list[set[int]]:
    """The columns that each row loses, number by number."""
    columns, tokens = len(weight[0]), len(x)
    mean = [sum(row[j] for row in x) / tokens for j in range(columns)]
    variance = [sum((row[j] - mean[j]) ** 2 for row in x) / tokens for j in range(columns)]
    norm = [sum(row[j] ** 2 for row in x) ** 0.5 for j in range(columns)]
    found = []
    for w in weight:
        order = sorted(range(columns), key=lambda j: abs(w[j]) * norm[j])
        pruned = set(order[: int(share * columns)])
        error = sum(w[j] * mean[j] for j in pruned)
        for _ in range(cycles):
            sign = (error > 0) - (error < 0)
            kept = [j for j in range(columns) if j not in pruned and sign * w[j] * mean[j] < 0]
            if abs(error) <= 0.1 or not kept or not pruned:
                break
            grown = max(pruned, key=lambda j: sign * w[j] * mean[j] / variance[j])
            cut = min(kept, key=lambda j: abs(w[j]) * norm[j])
            after = error - w[grown] * mean[grown] + w[cut] * mean[cut]
            if abs(after) >= abs(error):
                break
            pruned, error = pruned - {grown} | {cut}, after
        found.append(pruned)
    return found


@pytest.mark.parametrize("cycles", [0, 1, 3, 50])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_masks_are_those_of_plain_loops(share: float, cycles: int) -> None:
    generator = torch.Generator().manual_seed(round(10 * share) + cycles)
    weight = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    x = torch.randn(30, 20, generator=generator, dtype=torch.float64) + 1
    inputs = Inputs.of(x)
    mask = wanda(weight, inputs, share)
    if cycles:
        mask = dsnot(weight, inputs, mask, cycles)
    found = [set(row.nonzero().flatten().tolist()) for row in mask]
    assert found == by_rows(weight.tolist(), x.tolist(), share, cycles)


def test_refining_makes_the_expected_error_smaller_and_keeps_the_count() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(50, 40, generator=generator), torch.rand(99, 40, generator=generator)
    inputs = Inputs.of(x)
    before = wanda(weight, inputs, 0.6)
    after = dsnot(weight, inputs, before)

    def error(mask: torch.Tensor) -> torch.Tensor:
        return (weight * inputs.mean * mask).sum(1).abs()

    assert torch.equal(before.sum(1), after.sum(1))
    assert (error(after) <= error(before)).all()
    assert error(after).mean() < 0.5 * error(before).mean()


def test_layers_are_pruned_but_for_the_one_that_is_spared() -> None:
    model = make("llama")
    whole = copy.deepcopy(model)
    BENCHMARK["prune"](model, [collate(samples(4))], 0.5, BENCHMARK["PRUNERS"]["wanda"], spared=1)
    for name, p in model.named_parameters():
        zeros = float((p == 0).float().mean())
        pruned = "layers" in name and "proj" in name and "layers.1." not in name
        assert zeros == pytest.approx(0.5 if pruned else 0.0), name
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)
