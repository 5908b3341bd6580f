"""The frozen layers before the first that a visit trains: each is there once, for a moment.

A visit that trains the last layers of a model needs of the others only what comes out of them,
which stays the same while it lasts. So they wait in an ``Offload``, one after another computes the
hidden states of all the visit's samples, and training goes on from those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from fullfed.data.batches import Batch
from fullfed.training.first_order import TrainingError
from fullfed.training.layers import find_layers, forward_replaced, pass_on
from fullfed.training.offload import Offload
from fullfed.training.precision import Precision, autocast, matrix_units


class Prefix:
    """The layers of a model before the first of which anything is trained.

    Args:
        model: whose layers hand on their hidden states and nothing else.
        trained: parameters of the model, none of which is needed for what comes out of them.

    Attributes:
        layers: in their order; none where the model's first layer is trained.
        waiting: their parameters and the input embedding's, but for those that are needed
            elsewhere too (a head that is tied to the embedding, what layers share).
    """

    def __init__(self, model: PreTrainedModel, trained: Iterable[Tensor]) -> None:
        _, layers = find_layers(model)
        own = {id(p) for p in trained}
        first = (n for n, layer in enumerate(layers) if any(id(p) in own for p in _of(layer)))
        self.layers = list(layers)[: next(first, len(layers))]
        self._model, self._embedding = model, model.get_input_embeddings()
        inside = {id(module) for layer in layers for module in layer.modules()}
        needed = {id(p) for layer in list(layers)[len(self.layers) :] for p in _of(layer)} | own
        for module in model.modules():
            if id(module) not in inside and module is not self._embedding:
                needed |= {id(p) for p in module.parameters(recurse=False)}
        found = [*_of(self._embedding), *(p for layer in self.layers for p in _of(layer))]
        waiting = {id(p): p for p in found if id(p) not in needed} if self.layers else {}
        self.waiting = list(waiting.values())

    @property
    def stages(self) -> list[list[nn.Parameter]]:
        """Those of ``waiting`` that are there together: of each layer; the embedding with the
        first."""
        ids = {id(p) for p in self.waiting}
        return [
            list({id(p): p for p in self._users(number) if id(p) in ids}.values())
            for number in range(len(self.layers))
        ]

    @contextmanager
    def kept(
        self, batches: Sequence[Batch], precision: Precision, together: int | None
    ) -> Iterator[Outputs]:
        """Inside, the waiting parameters are away, and what comes out of the prefix is kept.

        Args:
            batches: of the visit, on the CPU.
            precision: that it computes in.
            together: samples that are computed at once; None for whole batches.

        Raises:
            TrainingError: what comes out of a layer is not one row of hidden states a token.
        """
        with Offload() as store:
            fetch = {id(p): store.put(p) for p in self.waiting}
            for p in self.waiting:
                p.data = p.data.new_empty(0)
            try:
                with torch.no_grad(), matrix_units(precision):
                    parts = [part for batch in _new(batches) for part in batch.split(together)]
                    states = self._states(parts, fetch, precision)
                yield Outputs(states, self._instead)
            finally:
                for p in self.waiting:
                    p.data = fetch[id(p)]().to(p.device)

    def _states(
        self,
        parts: Sequence[Batch],
        fetch: Mapping[int, Callable[[], Tensor]],
        precision: Precision,
    ) -> dict[bytes, Tensor]:
        """What comes out of the last layer for each sample, by its tokens: (length, width)."""
        device = next(p.device for p in self._model.parameters())
        hidden: list[Tensor | None] = [None] * len(parts)
        for number, own in enumerate(self.stages):
            for p in own:
                p.data = fetch[id(p)]().to(device)
            for n, part in enumerate(parts):
                with autocast(precision, device):
                    hidden[n] = self._through(number, part.to(device), hidden[n])
            for p in own:
                p.data = p.data.new_empty(0)
        states: dict[bytes, Tensor] = {}
        for part, rows in zip(parts, hidden, strict=True):
            if rows is None or rows.ndim != 3 or rows.shape[:2] != part.input_ids.shape:
                raise TrainingError("the model's layers do not hand on one row of numbers a token")
            for (key, length), row in zip(_keys(part), rows, strict=True):
                states.setdefault(key, row[:length].clone())
        return states

    def _through(self, number: int, part: Batch, before: Tensor | None) -> Tensor:
        """What comes out of one layer.

        Args:
            before: what came out of the layer before it; None at the first.
        """
        found: list[Tensor] = []

        def stop(_: nn.Module, __: Any, output: Tensor) -> None:
            found.append(output)
            raise _ReachedError

        with ExitStack() as stack:
            if before is not None:
                stack.enter_context(self._instead(before, number))
            stack.callback(self.layers[number].register_forward_hook(stop).remove)
            with suppress(_ReachedError):
                self._model(input_ids=part.input_ids, use_cache=False)
        return found[0]

    @contextmanager
    def _instead(self, hidden: Tensor, count: int | None = None) -> Iterator[None]:
        """Inside, ``hidden`` is what comes out of the first ``count`` layers, of all of them if it
        is None, and nothing before is computed."""
        *below, last = self.layers[:count]
        with ExitStack() as stack:
            if any(p is own for p in self.waiting for own in _of(self._embedding)):
                blank = _blank(self._embedding, hidden)
                stack.enter_context(forward_replaced(self._embedding, blank))
            for layer in below:
                stack.enter_context(forward_replaced(layer, pass_on))
            stack.enter_context(forward_replaced(last, lambda *_, **__: hidden))
            yield

    def _users(self, number: int) -> list[nn.Parameter]:
        """The parameters with which the layer of a number is computed."""
        return [*(_of(self._embedding) if number == 0 else ()), *_of(self.layers[number])]


class Outputs:
    """What a prefix made of samples.

    Args:
        states: for each sample, by its tokens; shape (length, width).
        instead: puts hidden states in the place of the prefix.
    """

    def __init__(self, states: Mapping[bytes, Tensor], instead: Callable[[Tensor], Any]) -> None:
        self._states, self._instead = states, instead

    @property
    def nbytes(self) -> int:
        """Of all that is kept."""
        return sum(state.nbytes for state in self._states.values())

    @contextmanager
    def serving(self, batch: Batch) -> Iterator[None]:
        """Run the model on some of the samples inside. Padding is on the right, where causal
        attention does not look; what comes of it is zero."""
        rows = [self._states[key] for key, _ in _keys(batch)]
        with self._instead(pad_sequence(rows, batch_first=True)):
            yield


class _ReachedError(Exception):
    """The layer whose output is wanted has made it."""


def _of(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters())


def _new(batches: Sequence[Batch]) -> Iterator[Batch]:
    """Those that hold a sample which none before them held."""
    seen = set[bytes]()
    for batch in batches:
        keys = {key for key, _ in _keys(batch)}
        if keys - seen:
            seen |= keys
            yield batch


def _keys(batch: Batch) -> Iterator[tuple[bytes, int]]:
    """Each sample's tokens, and how many they are."""
    lengths = batch.attention_mask.sum(dim=1).tolist()
    for row, length in zip(batch.input_ids.cpu(), lengths, strict=True):
        yield row[:length].numpy().tobytes(), length


def _blank(embedding: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
    """What takes an embedding's place where nobody looks at what it makes."""
    width = embedding.embedding_dim
    return lambda ids: like.new_zeros((*ids.shape, width))  # type: ignore[arg-type]
