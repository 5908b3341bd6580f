"""Measuring a model needs no more memory than a visit that trains it, by count of all tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fullfed.config import LocalTable, MemoryTable
from fullfed.data.batches import collate
from fullfed.data.tokens import TokenizedExample
from fullfed.evaluation.evaluate import evaluate_loss
from fullfed.evaluation.generation import generate
from fullfed.sketch import Purpose, Stream
from fullfed.training.first_order import train
from fullfed.training.zeroth_order import Neighbourhood, RandomDirection

TOGETHER = 2


def example(length: int, answer: int) -> TokenizedExample:
    return TokenizedExample.pair(np.arange(length, dtype=np.int32) % 200 + 1, length - answer)


# Two as they are trained on, and many that are shorter, of whose tokens most are answers.
EXAMPLES = [example(120, 20), example(120, 20), *(example(20 + n % 3, 12) for n in range(60))]


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, until they are gone.

    Attributes:
        most: of them at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = self._bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: UntypedStorage) -> None:
        address, nbytes = storage._cdata, storage.nbytes()
        if address not in self._known:
            self._known.add(address)
            self._bytes += nbytes
            self.most = max(self.most, self._bytes)
            weakref.finalize(storage, self._forget, address, nbytes)

    def _forget(self, address: int, nbytes: int) -> None:
        self._known.remove(address)
        self._bytes -= nbytes


def peak(work: Callable[[], object]) -> int:
    """Bytes of all tensors that were alive at once, but for those from before."""
    with Alive() as alive:
        work()
    return alive.most


def test_what_is_counted_is_what_is_alive() -> None:
    def work() -> None:
        x = torch.ones(100, requires_grad=True)  # 400 bytes, ...
        y = x.exp().exp()  # ... and as many for each result, which the graph keeps
        del y
        torch.ones(250).view(10, 25)

    assert peak(work) == 1400


@pytest.fixture
def model() -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=2000, **sizes, **heads))


def visit(model: LlamaForCausalLM, kind: str) -> int:
    """What training on the two longest needs."""
    own, batch = dict(model.named_parameters()), collate(EXAMPLES[:TOGETHER])
    if kind == "zeroth order":
        direction = RandomDirection(Stream(1, Purpose.DIRECTION), "rademacher")
        return peak(lambda: Neighbourhood(model, own).at(batch, direction, 1e-3))
    memory = MemoryTable(checkpoint_activations=kind == "checkpointed", optimizer_in_backward=True)
    local = LocalTable(clip=None)
    return peak(lambda: train(model, own, [batch], local, memory))


@pytest.mark.parametrize("kind", ["plain", "checkpointed", "zeroth order"])
def test_the_loss_needs_no_more_memory_than_a_visit(model: LlamaForCausalLM, kind: str) -> None:
    needed = peak(lambda: evaluate_loss(model, EXAMPLES, TOGETHER))
    assert needed <= visit(model, kind)


def test_answers_need_no_more_memory_than_a_visit(
    model: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    needed = peak(lambda: generate(model, byte_tokenizer, EXAMPLES, 12, TOGETHER))
    assert needed <= visit(model, "plain")
    assert needed > peak(lambda: generate(model, byte_tokenizer, EXAMPLES[:1], 12, 1))
