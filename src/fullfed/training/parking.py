"""Putting weights away while a visit does not need them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fullfed.training.frozen import forward_replaced
from fullfed.training.layers import find_layers


def parked(weight: nn.Parameter, path: Path) -> Callable[[], None]:
    """Put the weight's values away, in the host's memory or, from there, in a file.

    Returns:
        what brings them back, bit for bit.
    """
    values, shape = weight.data, weight.shape
    if values.device.type != "cpu":
        away, device = values.cpu(), values.device

        def back() -> None:
            weight.data = away.to(device)
    else:
        # Not safetensors: its bytes would be one copy more in memory.
        values.contiguous().view(-1).view(torch.uint8).numpy().tofile(path)
        dtype = values.dtype

        def back() -> None:
            weight.data = torch.from_numpy(np.fromfile(path, np.uint8)).view(dtype).view(shape)
            path.unlink()

    return back


@contextmanager
def without_layers(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Inside, what comes into a layer with any of these parameters comes out of it unchanged.

    Transformer layers add to what comes in, so the others still make sense of it. The layers'
    weights wait elsewhere, as in ``quantised``.
    """
    found = find_layers(model)
    prefix, layers = found if found else ("", nn.ModuleList())
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for number, layer in enumerate(layers):
            own = dict(layer.named_parameters(f"{prefix}.{number}"))
            if not own.keys() & set(names):
                continue
            stack.enter_context(forward_replaced(layer, _pass))
            for place, weight in enumerate(own.values()):
                stack.callback(parked(weight, Path(folder) / f"{number}.{place}"))
                weight.data = weight.data.new_empty(0)
        yield


def _pass(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden
