"""The two families of shared random directions a sketch can use."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.federation.messages import Update, Value
from fullfed.sketch import NormalBasis, SignBasis, allocate, second_moment

_MEMORY = 0.5  # weight of earlier rounds in a block's energy


@dataclass(frozen=True)
class Signs:
    """Sign bases over the whole model (sketch.SignBasis).

    Attributes:
        seed: the recipe's.
        coordinates: K.
    """

    seed: int
    coordinates: int

    def plan(self, round: int, last: Update | None) -> dict[str, Value]:
        return {}

    def basis(self, round: int, owner: int, values: Mapping[str, Value]) -> SignBasis:
        return SignBasis(self.seed, round, owner=owner, coordinates=self.coordinates)

    def energy(self, coordinates: Tensor, values: Mapping[str, Value]) -> float:
        return float(coordinates.double().square().sum())

    def remember(
        self, values: Mapping[str, Value], mean: Callable[[], Tensor], last: Update | None
    ) -> dict[str, Value]:
        return {}


@dataclass(frozen=True)
class TruncatedNormals:
    """The paper's dense bases, K_l directions for block l (sketch.NormalBasis).

    The error of the whole is least with K_l proportional to sqrt(d_l) ||delta_l|| (the paper's
    rule is not its own minimum; see docs/methods/ferret.md). Norms are estimated from the
    coordinates of earlier updates, which everybody has, so the split costs no traffic and
    the sum over clients stays linear.

    Attributes:
        seed: the recipe's.
        coordinates: K, over all blocks.
        blocks: consecutive runs of tensor numbers.
        sizes: elements of each block.
    """

    seed: int
    coordinates: int
    blocks: tuple[range, ...]
    sizes: tuple[int, ...]

    def plan(self, round: int, last: Update | None) -> dict[str, Value]:
        # Before anything is known, every element is as likely to change as any other.
        energies = list(self.sizes) if last is None else _floats(last.values["energies"])
        weights = [math.sqrt(d * e) for d, e in zip(self.sizes, energies, strict=True)]
        return {"allocation": list(allocate(self.coordinates, weights, self.sizes))}

    def basis(self, round: int, owner: int, values: Mapping[str, Value]) -> NormalBasis:
        return NormalBasis(
            self.seed,
            round,
            owner=owner,
            blocks=self.blocks,
            coordinates=tuple(int(k) for k in _floats(values["allocation"])),
        )

    def remember(
        self, values: Mapping[str, Value], mean: Callable[[], Tensor], last: Update | None
    ) -> dict[str, Value]:
        energies = self._energies(mean(), values)
        if last is not None:
            energies = [
                _MEMORY * old + (1 - _MEMORY) * new
                for old, new in zip(_floats(last.values["energies"]), energies, strict=True)
            ]
        return {"energies": list(energies)}

    def energy(self, coordinates: Tensor, values: Mapping[str, Value]) -> float:
        return math.fsum(self._energies(coordinates.double(), values))

    def _energies(self, coordinates: Tensor, values: Mapping[str, Value]) -> list[float]:
        """Each block's energy: ||y_l||**2 rho_l K_l is unbiased for ||delta_l||**2."""
        counts = [int(k) for k in _floats(values["allocation"])]
        return [
            float(own.square().sum()) * second_moment(d) * k
            for own, d, k in zip(torch.split(coordinates, counts), self.sizes, counts, strict=True)
        ]


def blocks_of(sizes: list[int]) -> tuple[range, ...]:
    """Consecutive tensors in blocks: large ones alone, small ones with their neighbours.

    A block is closed when it holds 0.9 of the median tensor, which is how the published code
    divides a model.
    """
    enough = 0.9 * statistics.median(sizes)
    ends, held = [0], 0
    for number, size in enumerate(sizes, start=1):
        held += size
        if held >= enough:
            ends.append(number)
            held = 0
    if held:
        ends.append(len(sizes))
    return tuple(range(start, end) for start, end in pairwise(ends))


def _floats(value: Value) -> list[float]:
    if not isinstance(value, list):
        raise UserError("the log holds an update of another basis; replay it with its own recipe.")
    return [float(item) for item in value]  # type: ignore[arg-type]
