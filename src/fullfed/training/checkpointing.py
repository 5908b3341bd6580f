"""Activation checkpointing: a layer keeps its input only, and computes again on the way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from fullfed.training.frozen import forward_replaced


@contextmanager
def checkpointed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Checkpoint each layer by itself. Layers that need no graph are none the slower."""
    with ExitStack() as stack:
        for layer in layers:
            again = partial(
                checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
            )
            stack.enter_context(forward_replaced(layer, again))
        yield
