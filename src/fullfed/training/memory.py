"""What a client can trade for memory in a visit (docs/memory.md has the prices).

Frozen parameters without gradients, activation checkpointing, frozen weights in few bits, and
a cache of what comes into the first trained layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from fullfed.data.batches import Batch
from fullfed.training.layers import find_layers, forward_replaced, pass_on, training_only
from fullfed.training.quantised import Bits, quantised

Frozen = Literal["exact", "int8", "int4"]


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Checkpoint each layer by itself. Layers that need no graph are none the slower."""
    _, layers = find_layers(model)
    with ExitStack() as stack:
        for layer in layers:
            again = partial(
                checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
            )
            stack.enter_context(forward_replaced(layer, again))
        yield


@contextmanager
def held(model: nn.Module, parameters: Sequence[Tensor], frozen: Frozen) -> Iterator[None]:
    """Inside, only ``parameters`` train, and what is frozen is held exactly or in 8 or 4 bits."""
    bits: Bits = 8 if frozen == "int8" else 4
    packed = nullcontext() if frozen == "exact" else quantised(model, parameters, bits)
    with training_only(model, parameters), packed:
        yield


def input_cache(model: nn.Module, parameters: Sequence[Tensor], limit: int) -> InputCache | None:
    """A cache before the first trained layer; None if nothing frozen comes before it."""
    _, layers = find_layers(model)
    trained = {id(p) for p in parameters}
    if limit == 0 or trained - {id(p) for p in layers.parameters()}:
        return None
    first = next(
        n for n, own in enumerate(layers) if any(id(p) in trained for p in own.parameters())
    )
    return InputCache(list(layers), first, limit) if first else None


class InputCache:
    """The hidden states that reach a layer, by sample.

    They are a function of the sample alone as long as nothing before the layer changes: padding
    is on the right, where causal attention does not look. What of padding would reach the layer
    is zero when it comes from the cache.

    Args:
        layers: of the model, in order.
        first: the number of the first that is trained; those before it are frozen.
        limit: bytes. When the samples need more, the cache is given up for the visit.
    """

    def __init__(self, layers: Sequence[nn.Module], first: int, limit: int) -> None:
        self._below, self._layer = layers[:first], layers[first]
        self._limit = limit
        self._states: dict[bytes, Tensor] = {}
        self._bytes = 0
        self._axis = -1  # of the samples in hidden states, before that of the length; -1: not known

    @contextmanager
    def serving(self, batch: Batch) -> Iterator[None]:
        """Run the model on ``batch`` inside: from the cache, or so that it is cached."""
        lengths = batch.attention_mask.sum(dim=1).tolist()
        rows = zip(batch.input_ids.cpu(), lengths, strict=True)
        keys = [row[:length].numpy().tobytes() for row, length in rows]
        cached = [self._states[key] for key in keys if key in self._states]

        def take(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            padded = pad_sequence(cached, batch_first=True)  # (samples, length, ..., width)
            return (padded.movedim((0, 1), (self._axis, self._axis + 1)), *inputs[1:])

        def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            hidden = inputs[0]
            if not self._find_axis(hidden, batch):
                return
            rows = hidden.movedim((self._axis, self._axis + 1), (0, 1))
            for key, length, row in zip(keys, lengths, rows, strict=True):
                if self._bytes <= self._limit and key not in self._states:
                    self._states[key] = row[:length].detach().clone()
                    self._bytes += self._states[key].nbytes
            if self._bytes > self._limit:
                self._states.clear()

        with ExitStack() as stack:
            served = len(cached) == len(keys)
            hook = self._layer.register_forward_pre_hook(take if served else keep)
            stack.callback(hook.remove)
            for layer in self._below if served else ():
                stack.enter_context(forward_replaced(layer, pass_on))
            yield

    def _find_axis(self, hidden: Tensor, batch: Batch) -> bool:
        """Whether it is known where the samples are: some models have streams beside them.

        The sizes of a batch tell it, unless there happen to be as many streams.
        """
        if self._axis < 0:
            sizes, own = batch.input_ids.shape, hidden.shape
            found = [i for i in range(hidden.ndim - 2) if own[i : i + 2] == sizes]
            if len(found) == 1:
                self._axis = found[0]
        return self._axis >= 0
