"""Dense bases, as in the Ferret paper: K_l random vectors for each block of tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.randomness import SHARED, Purpose, Stream
from fullfed.sketch.backends import Direction, backend_for
from fullfed.sketch.checks import check_coordinates, check_finite, check_scale, check_tensors
from fullfed.sketch.coded import Coded, decoded
from fullfed.sketch.entries import SIGNS, Entries, truncated
from fullfed.sketch.layout import FOLD, LANES
from fullfed.sketch.pieces import Rounding, load, rounding_noise, writable, zeros
from fullfed.sketch.series import second_moment
from fullfed.sketch.weights import Factor, Weight, factors

STRETCH = 4096 * FOLD  # elements whose products are summed before partial sums are folded


@dataclass(frozen=True)
class DenseBasis(ABC):
    """K_l dense vectors for block l; see NormalBasis and RademacherBasis.

    ``project`` gives y_l = V_l' delta_l / (rho_l K_l) with rho_l the second moment of an entry,
    and ``reconstruct_`` adds V_l y_l, an unbiased estimate of delta_l: eqs. 6 to 8 of Ferret
    (arXiv 2409.06277). Costs O(sum of K_l d_l).

    Attributes:
        seed: the recipe's seed, 64-bit.
        round: 32-bit round number.
        owner: 32-bit client number, or SHARED.
        blocks: consecutive runs of tensor numbers, together 0, 1, ..., covering every tensor.
        coordinates: K_l for each block, from 1 to its number of elements.
    """

    seed: int
    round: int
    blocks: tuple[range, ...]
    coordinates: tuple[int, ...]
    owner: int = SHARED
    purpose: ClassVar[Purpose]

    @staticmethod
    @abstractmethod
    def entries(d: int) -> Entries:
        """What the vectors of a block of d elements are made of."""

    @staticmethod
    @abstractmethod
    def moment(d: int) -> float:
        """rho, the second moment of those entries."""

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.coordinates):
            raise UserError(
                f"{len(self.coordinates)} coordinate counts for {len(self.blocks)} blocks."
            )
        for count in self.coordinates:
            check_coordinates(count)
        if [n for block in self.blocks for n in block] != list(range(self.tensors)):
            raise UserError("blocks must be consecutive runs of tensor numbers starting at 0.")

    @property
    def tensors(self) -> int:
        return sum(len(block) for block in self.blocks)

    def project(
        self,
        delta: Sequence[Tensor],
        *,
        before: Sequence[Tensor] | None = None,
        weights: Sequence[Weight] | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """The coordinates of all blocks in turn, float32, shape (sum of K_l,).

        Arguments and errors as for ``SignBasis.project``.
        """
        check_tensors(delta, before)
        self._check_fits(delta)
        scales, kernels = factors(weights, delta), backend_for(delta[0].device, backend)
        parts = []
        for number, block in enumerate(self.blocks):
            new = [delta[n] for n in block]
            old = [None if before is None else before[n] for n in block]
            d, k = _elements(new), self.coordinates[number]
            partials = zeros(-(-d // STRETCH), k, delta[0].device)
            for stretch, piece in enumerate(_stretches(new, old, [scales[n] for n in block])):
                directions = self._directions(number, d, stretch * STRETCH)
                kernels.add_products(self.entries(d), directions, piece, partials[stretch])
            parts.append(kernels.fold(partials) * float(np.float32(1.0 / (self.moment(d) * k))))
        return check_finite(torch.cat(parts), "the change to project")

    def reconstruct_(
        self,
        weights: Sequence[Tensor],
        coordinates: Tensor | Coded,
        *,
        scale: float = 1.0,
        inverse: Sequence[Weight] | None = None,
        rounding: Rounding = "nearest",
        backend: str | None = None,
    ) -> None:
        """Add scale * V y to the weights, in place.

        Per element u = sum over k in order of fl(y_k v_k), then w = fl(w + fl(f * u)) with
        f = fl(scale * its inverse weight). Arguments and errors as for ``SignBasis.reconstruct_``.
        """
        check_tensors(weights)
        self._check_fits(weights)
        check_coordinates(sum(self.coordinates), coordinates, weights[0].device)
        scales = factors(inverse, weights, check_scale(scale))
        kernels, first = backend_for(weights[0].device, backend), 0
        values = torch.split(decoded(coordinates, weights[0].device), list(self.coordinates))
        stream = Stream(self.seed, self.purpose, self.round, self.owner)
        for number, block in enumerate(self.blocks):
            tensors = [weights[n] for n in block]
            d, noise = _elements(tensors), rounding_noise(rounding, stream, first)
            for pieces in writable(tensors, [scales[n] for n in block], kernels, noise):
                kernels.add_combination(
                    self.entries(d), self._directions(number, d), values[number], pieces
                )
            first += d

    def _directions(self, block: int, d: int, start: int = 0) -> list[Direction]:
        """The K_l directions of a block, from its element ``start`` (a multiple of STRETCH) on."""
        parts = self.entries(d).parts
        rows = parts * -(-d // (parts * LANES))
        stream = Stream(self.seed, self.purpose, self.round, self.owner, block)
        return [
            Direction(stream, k * rows + start // LANES) for k in range(self.coordinates[block])
        ]

    def _check_fits(self, tensors: Sequence[Tensor]) -> None:
        if len(tensors) != self.tensors:
            raise UserError(f"{len(tensors)} tensors for a basis over {self.tensors}.")
        for number, block in enumerate(self.blocks):
            d, k = _elements([tensors[n] for n in block]), self.coordinates[number]
            if d < k:
                raise UserError(f"block {number} has {d} elements but {k} coordinates.")


class NormalBasis(DenseBasis):
    """Entries N(0, 1) truncated to +-1 / sqrt(d_l), as published.

    Expected squared error ((d_l - 0.2) / K_l) ||delta_l||**2 per block.
    """

    purpose = Purpose.TRUNCATED_NORMAL

    @staticmethod
    def entries(d: int) -> Entries:
        return truncated(d)

    @staticmethod
    def moment(d: int) -> float:
        return second_moment(d)


class RademacherBasis(DenseBasis):
    """Entries +-1. Expected squared error ((d_l - 1) / K_l) ||delta_l||**2 per block."""

    purpose = Purpose.DENSE_SIGNS

    @staticmethod
    def entries(d: int) -> Entries:
        return SIGNS

    @staticmethod
    def moment(d: int) -> float:
        return 1.0


def _elements(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _stretches(
    tensors: Sequence[Tensor], before: Sequence[Tensor | None], weights: Sequence[Factor]
) -> Iterator[Tensor]:
    """STRETCH elements of the block at a time as float32 (rows, LANES), padded with zeros."""
    d = _elements(tensors)
    for start in range(0, d, STRETCH):
        stop, place = min(start + STRETCH, d), 0
        stretch = zeros(-(-(stop - start) // 4096), 4096, tensors[0].device).view(-1)
        for new, old, weight in zip(tensors, before, weights, strict=True):
            low, high = max(start - place, 0), min(stop - place, new.numel())
            if low < high:
                load(stretch[place + low - start : place + high - start], new, old, weight, low)
            place += new.numel()
        yield stretch.view(-1, LANES)
