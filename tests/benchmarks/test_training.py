"""The training benchmark: its floor is what torch counts, and its contenders train alike."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fullfed.training.loss import answer_loss

# The folder is on the path no longer than this takes, and the file is run, not imported: its files
# are called as folders of tests, which may have been imported before.
BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
try:
    from contenders import CONTENDERS, Task
    from shapes import SHAPES, random_clients

    benchmark = SimpleNamespace(**runpy.run_path(f"{BENCHMARKS}/training.py"))
finally:
    sys.path.remove(BENCHMARKS)


def test_the_floor_is_every_product_of_matrices_in_a_step_and_no_other() -> None:
    """Samples of one length: padding is computed as well, and has no share of the floor."""
    model = SHAPES["tiny"].model("cpu")
    task = Task(model, "float32", 2, 3, random_clients(1, 6, 20, 512)[0])
    seconds, rate = benchmark.floor_seconds(task)
    with FlopCounterMode(display=False) as counter:
        for batch in task.batches:
            answer_loss(model, batch).backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for operation, n in counts.items() if "mm" in str(operation))
    assert seconds * rate == pytest.approx(products, rel=1e-9)


@pytest.mark.parametrize("name", ["loop", "loop, all logits", "Trainer"])
def test_whatever_a_visit_is_compared_with_trains_the_same(name: str) -> None:
    """A visit puts the weights back, so its training is the plain loop's: test_first_order.py."""
    task = Task(SHAPES["tiny"].model("cpu"), "float32", 3, 2, benchmark.examples(6, 16, 512))

    def change(contender: str) -> torch.Tensor:
        task.restore()
        assert CONTENDERS[contender](task) > 0
        after = task.model.parameters()
        return torch.cat([(a - b).flatten() for a, b in zip(after, task.start, strict=True)])

    plain, other = change("loop").detach(), change(name).detach()
    assert plain.norm() > 0
    assert torch.equal(change("loop"), plain), "everybody begins with the same weights"
    # Adam's first steps are signs of gradients, which rounding turns where they are all but zero.
    assert torch.cosine_similarity(plain, other, dim=0) > 0.999
