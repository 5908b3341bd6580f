"""How replicas in 16 bits keep updates that are smaller than their precision.

An update of 1e-5 to a weight of 0.02 is a twelfth of what bfloat16 can tell apart there. Rounded
to nearest it would be lost, and so would the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.sketch import Purpose, Stream, round_

SHORT = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Rounding:
    """What a replica does beyond its precision; nothing where the model is float32.

    Attributes:
        kind: "master" keeps the exact weights beside those in 16 bits, 4 more bytes a parameter.
            "stochastic" rounds bfloat16 up or down by shared randomness, right on average and
            alike on every device, in no more memory but while an update is applied.
        seed: the recipe's.
    """

    kind: Literal["master", "stochastic"] = "master"
    seed: int = 0

    def masters(
        self, model: PreTrainedModel, replicated: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The exact weights to keep, float32, by name: of what updates change in 16 bits."""
        if self.kind == "stochastic":
            return {}
        return {n: p.detach().float() for n, p in _short(model, replicated).items()}

    @contextmanager
    def widened(
        self,
        model: PreTrainedModel,
        replicated: Mapping[str, Tensor],
        masters: Mapping[str, Tensor],
        round: int,
    ) -> Iterator[None]:
        """Inside, what updates change is float32; afterwards it is rounded.

        Args:
            masters: from ``masters``; updated in place.
            round: of the update that is applied.
        """
        short = _short(model, replicated)
        stored = {name: p.data for name, p in short.items()}
        for name, parameter in short.items():
            parameter.data = masters[name] if masters else parameter.data.float()
        try:
            yield
            exact = [p.data for p in short.values()]
            if masters or not exact:
                _copy(exact, list(stored.values()))
            else:
                stream = Stream(self.seed, Purpose.ROUNDING, round)
                round_(list(stored.values()), exact, stream)
        finally:
            for name, parameter in short.items():
                parameter.data = stored[name]


def _short(model: PreTrainedModel, replicated: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: p for name, p in model.named_parameters() if name in replicated and p.dtype in SHORT
    }


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for exact, rounded in zip(source, target, strict=True):
        rounded.copy_(exact)
