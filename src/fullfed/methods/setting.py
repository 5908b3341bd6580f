"""What a method's ``build`` is given: recipe tables, client count, parameter shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fullfed.config import FederationTable, LocalTable, MemoryTable
from fullfed.methods.aggregation import Aggregation, WeightedMean
from fullfed.methods.codecs.codec import Codec
from fullfed.methods.codecs.dense import Dense
from fullfed.training.trainer import Trainer


@dataclass(frozen=True)
class Setting:
    """The federation a method is built for.

    Attributes:
        federation, local, memory: the recipe's tables.
        clients: how many there are.
        shapes: of the trained parameters, by name, in the model's order.
        codec: the recipe's, or the method's default; methods with a codec of their own ignore it.
        aggregation: the recipe's.
        layers: the names of those in each of the model's layers; empty if it has none.
        head: the names of those that every block trains with its own, because they begin at
            random: an encoder's new classification head. None of a language model's do.
        trainer: a user's own, for methods whose clients train by gradients; None for ours.
        replicated: the shapes of what an update changes, by name; only a method whose updates
            change more than its visits train needs them.
    """

    federation: FederationTable
    local: LocalTable
    memory: MemoryTable
    clients: int
    shapes: Mapping[str, torch.Size]
    codec: Codec = field(default_factory=Dense)
    aggregation: Aggregation = field(default_factory=WeightedMean)
    layers: tuple[tuple[str, ...], ...] = ()
    head: tuple[str, ...] = ()
    replicated: Mapping[str, torch.Size] = field(default_factory=dict)
    trainer: Trainer | None = None

    @property
    def seed(self) -> int:
        """What everything random flows from."""
        return self.federation.seed

    @property
    def cohort_size(self) -> int:
        """How many clients take part in a round."""
        return self.federation.clients_per_round

    @property
    def elements(self) -> int:
        """d, the number of trained parameters."""
        return sum(shape.numel() for shape in self.shapes.values())
