"""What a recipe tells every method, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from fullfed.training.first_order import FirstOrder


@dataclass(frozen=True)
class LocalWork:
    """A visit's length: ``steps`` batches, or ``epochs`` over the client's samples."""

    batch_size: int
    steps: int | None = None
    epochs: int | None = None

    def batches(self, samples: int) -> int:
        """How many batches a client with ``samples`` samples trains on."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 1) * -(-samples // self.batch_size)


@dataclass(frozen=True)
class Setting:
    """The federation a method is built for.

    Attributes:
        seed: what everything random flows from.
        clients: how many there are.
        cohort_size: how many take part in a round.
        merge_weights: whether a report weighs as its samples or as every other.
        optimizer, work: local training. Methods without gradients take the learning rate only.
        shapes: of the trained parameters, by name, in the model's order.
        layers: the names of those in each of the model's layers; empty if it has none.
        head: the names of those that every block trains with its own, because they begin at
            random: an encoder's new classification head. None of a language model's do.
        replicated: the shapes of what an update changes, by name; only a method whose updates
            change more than its visits train needs them.
    """

    seed: int
    clients: int
    cohort_size: int
    merge_weights: Literal["samples", "equal"]
    optimizer: FirstOrder
    work: LocalWork
    shapes: Mapping[str, torch.Size]
    layers: tuple[tuple[str, ...], ...] = ()
    head: tuple[str, ...] = ()
    replicated: Mapping[str, torch.Size] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """d, the number of trained parameters."""
        return sum(shape.numel() for shape in self.shapes.values())
