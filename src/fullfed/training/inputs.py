"""Keeping what comes into the first trained layer, so that later epochs need not compute it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fullfed.data.batches import Batch
from fullfed.training.frozen import forward_replaced


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

    @contextmanager
    def serving(self, batch: Batch) -> Iterator[None]:
        """Run the model on ``batch`` inside: from the cache, or so that it is cached."""
        keys = _keys(batch)
        with ExitStack() as stack:
            if all(key in self._states for key in keys):
                hidden = self._padded(keys, batch.input_ids.shape[1])
                for layer in self._below:
                    stack.enter_context(forward_replaced(layer, _pass))
                hook = self._layer.register_forward_pre_hook(_feed(hidden))
            else:
                hook = self._layer.register_forward_pre_hook(self._keeper(keys, batch))
            stack.callback(hook.remove)
            yield

    def _keeper(self, keys: list[bytes], batch: Batch) -> Any:
        lengths = batch.attention_mask.sum(dim=1).tolist()

        def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            for key, length, row in zip(keys, lengths, inputs[0], strict=True):
                if self._bytes <= self._limit and key not in self._states:
                    self._states[key] = row[:length].detach().clone()
                    self._bytes += self._states[key].nbytes
            if self._bytes > self._limit:
                self._states.clear()

        return keep

    def _padded(self, keys: list[bytes], length: int) -> Tensor:
        rows = [self._states[key] for key in keys]
        hidden = rows[0].new_zeros(len(rows), length, rows[0].shape[1])
        for to, row in zip(hidden, rows, strict=True):
            to[: len(row)] = row
        return hidden


def _keys(batch: Batch) -> list[bytes]:
    """The samples' own ids."""
    lengths = batch.attention_mask.sum(dim=1).tolist()
    rows = zip(batch.input_ids.cpu(), lengths, strict=True)
    return [row[: int(length)].numpy().tobytes() for row, length in rows]


def _pass(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden


def _feed(hidden: Tensor) -> Any:
    return lambda _, inputs: (hidden, *inputs[1:])
