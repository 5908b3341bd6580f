"""What a batch's forward and backward pass need of memory, reckoned without computing anything.

torch carries the passes out on tensors that have shapes and no numbers (``FakeTensorMode``), and
every piece of memory that they would take is counted from when it is taken until it is freed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from fullfed.config import LocalTable, MemoryTable
from fullfed.runs.workload import BatchShape
from fullfed.training.layers import training_only
from fullfed.training.memory import checkpointed
from fullfed.training.precision import autocast


def graph_bytes(
    model: PreTrainedModel,
    trained: Collection[str],
    shape: BatchShape,
    local: LocalTable,
    memory: MemoryTable,
    device: torch.device,
    held: Callable[[PreTrainedModel], PreTrainedModel] = lambda model: model,
) -> int:
    """The peak of one batch's passes: activations, and the gradients that are there with them.

    Args:
        model: on the meta device, in the replicas' dtype, with what the method's scope added; it
            is moved to ``device``, without numbers.
        trained: names of the parameters that get gradients; none where training needs no graph.
        shape: the batch.
        local, memory: the recipe's tables.
        device: that would compute.
        held: what a client makes of the model to train on.
    """
    with FakeTensorMode(), ExitStack() as stack:
        _move(model, device)
        model = held(model)
        parameters = [p for name, p in model.named_parameters() if name in trained]
        live = _Live([*model.parameters(), *model.buffers()])
        stack.enter_context(training_only(model, parameters))
        if memory.checkpoint_activations:
            stack.enter_context(checkpointed(model))
        if memory.optimizer_in_backward:
            for parameter in parameters:
                hook = parameter.register_post_accumulate_grad_hook(_forget)  # type: ignore[no-untyped-call]
                stack.callback(hook.remove)
        stack.enter_context(live)
        with nullcontext() if parameters else torch.no_grad():
            with autocast(local.precision, device):
                loss = _loss(model, shape, device)
            if parameters:
                loss.backward()  # type: ignore[no-untyped-call]
    return live.peak


def _loss(model: PreTrainedModel, shape: BatchShape, device: torch.device) -> Tensor:
    """As ``training.loss.answer_loss``, with as many predictions as the batch has learned tokens;
    which ones they are makes no difference."""
    ids = torch.zeros((shape.samples, shape.length), dtype=torch.int64, device=device)
    targets = torch.zeros(shape.learned, dtype=torch.int64, device=device)

    def narrow(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0].flatten(0, 1)[targets].unsqueeze(0),)

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    with head.register_forward_pre_hook(narrow) if head is not None else nullcontext():
        logits = model(input_ids=ids, use_cache=False).logits
    logits = logits.flatten(0, 1)[targets] if head is None else logits[0]
    return cross_entropy(logits.float(), targets, reduction="sum") / shape.learned


def _move(model: PreTrainedModel, device: torch.device) -> None:
    def without_numbers(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    model._apply(without_numbers)  # type: ignore[no-untyped-call]
    model.tie_weights()  # what was one parameter has become several


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that come into being inside, while they live.

    Args:
        given: tensors whose storages do not count.

    Attributes:
        peak: the most so far.
    """

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in given)
        self._now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._count(result.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, count: int) -> None:
        self._now -= count
