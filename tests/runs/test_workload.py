"""What is known of visits before a run is what a run then does."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

import fullfed
from fullfed.config import LocalTable, MemoryTable
from fullfed.data.batches import IGNORED, Batch
from fullfed.headway import Headway
from fullfed.runs.assembly import assemble
from fullfed.runs.graph_memory import graph_bytes
from fullfed.runs.workload import BatchShape, workload
from fullfed.training.layers import training_only
from fullfed.training.loss import answer_loss
from fullfed.training.memory import checkpointed
from fullfed.training.precision import autocast
from runs.small import recipe, tables

CPU = torch.device("cpu")


class Count(fullfed.Callback):
    """Counts visits, steps and tokens of a run."""

    def __init__(self) -> None:
        self.visits = self.steps = self.tokens = 0

    def on_headway(self, version: int, headway: Headway) -> None:
        if headway.work == "train" and headway.done == headway.of:
            self.visits += 1
            self.steps += headway.of
            self.tokens += headway.tokens


@pytest.mark.parametrize(
    "local", [{"steps": 3}, {"epochs": 2, "batch_size": 3}], ids=["steps", "epochs"]
)
@pytest.mark.parametrize("method", ["ferret", "fedcybgd", "fedkseed"])
def test_work_is_that_of_the_run(
    method: str, local: dict[str, Any], ingredients: Path, tmp_path: Path
) -> None:
    told = tables(ingredients)
    told["method"] = {"name": method, **({"coordinates": 300} if method == "ferret" else {})}
    told["local"] = {"learning_rate": 1e-3, "batch_size": 2, **local}
    assembly = assemble(fullfed.load_recipe(told))
    work = workload(assembly.recipe, assembly.data.clients, assembly.method)
    count = Count()
    fullfed.run(told, tmp_path / "run", callbacks=[count])
    assert (work.visits, work.steps, work.tokens) == (count.visits, count.steps, count.tokens)
    assert work.padded >= work.tokens


def test_the_largest_is_a_micro_batch_where_there_are_some(ingredients: Path) -> None:
    def largest(**local: Any) -> BatchShape:
        table = {"steps": 2, "batch_size": 8, **local}
        assembly = assemble(recipe(ingredients, local=table))
        return workload(assembly.recipe, assembly.data.clients, assembly.method).largest

    whole, half = largest(), largest(micro_batch_size=4)
    assert (whole.samples, half.samples) == (8, 4)
    assert whole.length == half.length, "one half has the longest samples"
    assert whole.learned / 2 < half.learned < whole.learned


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        **changes,
    )
    return LlamaForCausalLM(config)


def batch(rows: BatchShape) -> Batch:
    """With so many samples and tokens, the last of each learned."""
    ids = torch.ones((rows.samples, rows.length), dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    labels[:, -(rows.learned // rows.samples) :] = 1
    return Batch(ids, torch.ones_like(ids), labels, rows.learned)


def measured(model: LlamaForCausalLM, trained: list[str], local: LocalTable, again: bool) -> int:
    """The peak of a batch's passes, by torch's own account of what it allocates."""
    model.eval()
    parameters = [p for name, p in model.named_parameters() if name in trained]
    with (
        training_only(model, parameters),
        checkpointed(model) if again else nullcontext(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        with autocast(local.precision, CPU):
            loss = answer_loss(model, batch(SHAPE))
        loss.backward()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    now = peak = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return peak


SHAPE = BatchShape(4, 100, 200)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("part", ["all", "layer"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
def test_passes_are_reckoned_as_torch_allocates(
    precision: Any, tied: bool, part: str, again: bool
) -> None:
    model = llama(tie_word_embeddings=tied)
    names = [name for name, _ in model.named_parameters()]
    trained = [name for name in names if part == "all" or "layers.2." in name]
    local, memory = LocalTable(precision=precision), MemoryTable(checkpoint_activations=again)
    with torch.device("meta"):
        blank = LlamaForCausalLM(model.config)
    told = graph_bytes(blank, trained, SHAPE, local, memory, CPU)
    assert told == pytest.approx(measured(model, trained, local, again), rel=0.1)


def test_what_is_not_kept_is_not_counted() -> None:
    def told(trained: list[str], memory: MemoryTable) -> int:
        with torch.device("meta"):
            blank = llama()
        return graph_bytes(blank, trained, SHAPE, LocalTable(), memory, CPU)

    names = [name for name, _ in llama().named_parameters()]
    whole = told(names, MemoryTable())
    assert told([], MemoryTable()) < told(names, MemoryTable(checkpoint_activations=True)) < whole
    assert told(names, MemoryTable(optimizer_in_backward=True)) <= whole
