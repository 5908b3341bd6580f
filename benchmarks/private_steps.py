"""What noise for every record costs a visit: steps of DP-SGD beside ordinary ones.

    FULLFED_SHARED=... python benchmarks/private_steps.py

The same weights, records and optimizer (SGD); ordinary steps are of as many records as private
ones. The two take turns, and a ratio is the median of neighbours' ratios.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from fullfed.config import LocalTable, MemoryTable
from fullfed.data.batches import Batch, collate
from fullfed.data.tokens import TokenizedExample
from fullfed.privacy.keystream import derived
from fullfed.privacy.records import KeyedNoise
from fullfed.training.first_order import train
from fullfed.training.private_steps import Bound, train_privately

MODELS, STEPS, REPEATS = ("stories260k", "base-4m"), 3, 5
SIZES, LENGTH, ANSWER = (4, 16), 96, 48  # records of a step; tokens of a record, learned ones


def load(name: str) -> PreTrainedModel:
    torch.set_num_threads(1)
    path = Path(os.environ["FULLFED_SHARED"]) / "models" / name
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model


def batches(model: PreTrainedModel, size: int) -> list[Batch]:
    """Of random tokens, lengths between half of ``LENGTH`` and all of it."""
    drawn = np.random.default_rng(0)

    def record() -> TokenizedExample:
        length = int(drawn.integers(LENGTH // 2, LENGTH + 1))
        ids = drawn.integers(3, model.config.vocab_size, length).astype(np.int32)
        return TokenizedExample.pair(ids, length - ANSWER // 2)

    return [collate([record() for _ in range(size)]) for _ in range(STEPS)]


def visit(model: PreTrainedModel, kind: str, size: int) -> float:
    """Seconds of the steps of a visit."""
    parameters, given = dict(model.named_parameters()), batches(model, size)
    local, memory = LocalTable(learning_rate=1e-3), MemoryTable()
    started = time.perf_counter()
    if kind == "ordinary":
        train(model, parameters, given, local, memory)
    elif kind == "private":
        noise = KeyedNoise(derived(b"the benchmark's secret", "noise"))
        train_privately(model, parameters, given, local, memory, Bound(1.0, 1.0, size), noise)
    return time.perf_counter() - started


def main() -> None:
    print("| model | records a step | time, private / ordinary |")
    print("|---|---|---|")
    for name in MODELS:
        model = load(name)
        for size in SIZES:
            pairs = [
                (visit(model, "ordinary", size), visit(model, "private", size))
                for _ in range(REPEATS)
            ]
            ratio = statistics.median(private / plain for plain, private in pairs)
            print(f"| {name} | {size} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
