"""The dense basis of the Ferret paper: K_l truncated normal vectors for each block of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch.backends import Direction, backend_for
from fullfed.sketch.checks import check_coordinates, check_finite, check_scale
from fullfed.sketch.entries import Entries, truncated
from fullfed.sketch.fold import fold
from fullfed.sketch.generator import SHARED, Purpose, Stream
from fullfed.sketch.layout import FOLD, LANES
from fullfed.sketch.pieces import add_, check_tensors, flat, slices, writable
from fullfed.sketch.series import second_moment

STRETCH = 4096 * FOLD  # elements whose products are summed before partial sums are folded


@dataclass(frozen=True)
class NormalBasis:
    """K_l dense vectors for block l, entries N(0, 1) truncated to +-1 / sqrt(d_l).

    ``project`` gives y_l = V_l' delta_l / (rho_l K_l) and ``reconstruct_`` adds V_l y_l: eqs.
    6 to 8 of Ferret (arXiv 2409.06277), unbiased, with expected squared error
    ((d_l - 0.2) / K_l) ||delta_l||**2 per block. Costs O(sum of K_l d_l).

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
        backend: str | None = None,
    ) -> Tensor:
        """The coordinates of all blocks in turn, float32, shape (sum of K_l,).

        Arguments and errors as for ``SignBasis.project``.
        """
        check_tensors(delta, before)
        self._check_fits(delta)
        kernels = backend_for(delta[0].device, backend)
        parts = []
        for number, block in enumerate(self.blocks):
            new = [delta[n] for n in block]
            old = None if before is None else [before[n] for n in block]
            d, k = _elements(new), self.coordinates[number]
            partials = torch.zeros(-(-d // STRETCH), k, device=delta[0].device)
            for stretch, piece in enumerate(_stretches(new, old)):
                directions = self._directions(number, d, stretch * STRETCH)
                kernels.add_products(truncated(d), directions, piece, partials[stretch])
            parts.append(fold(partials) * float(np.float32(1.0 / (second_moment(d) * k))))
        return check_finite(torch.cat(parts), "the change to project")

    def reconstruct_(
        self,
        weights: Sequence[Tensor],
        coordinates: Tensor,
        *,
        scale: float = 1.0,
        backend: str | None = None,
    ) -> None:
        """Add scale * V y to the weights, in place.

        Per element u = sum over k in order of fl(y_k v_k), then w = fl(w + fl(scale * u)).
        Arguments and errors as for ``SignBasis.reconstruct_``.
        """
        check_tensors(weights)
        self._check_fits(weights)
        check_coordinates(sum(self.coordinates), coordinates, weights[0].device)
        step = float(check_scale(scale))
        kernels = backend_for(weights[0].device, backend)
        parts = torch.split(coordinates, list(self.coordinates))
        for number, block in enumerate(self.blocks):
            members = [weights[n] for n in block]
            d = _elements(members)
            for _, offset, row in writable(members):
                for start in range(0, row.numel(), STRETCH):
                    stop = min(start + STRETCH, row.numel())
                    skipped = (offset + start) % LANES
                    directions = self._directions(number, d, offset + start - skipped)
                    lines = -(-(skipped + stop - start) // LANES)
                    sums = torch.empty(lines, LANES, device=row.device)
                    kernels.combine(truncated(d), directions, parts[number], sums)
                    add_(row, start, stop, sums.view(-1)[skipped:], step)

    def _directions(self, block: int, d: int, start: int) -> list[Direction]:
        """The K_l directions of a block, from its element ``start`` (a multiple of LANES) on."""
        entries: Entries = truncated(d)
        tile = entries.parts * LANES
        rows = entries.parts * -(-d // tile)
        stream = Stream(self.seed, Purpose.TRUNCATED_NORMAL, self.round, self.owner, block)
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


def _elements(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _stretches(tensors: Sequence[Tensor], before: Sequence[Tensor] | None) -> Iterator[Tensor]:
    """STRETCH elements of the block at a time as float32 (rows, LANES), padded with zeros."""
    rows = [flat(tensor) for tensor in tensors]
    olds = [flat(tensor) for tensor in before] if before else None
    d = _elements(tensors)
    for start in range(0, d, STRETCH):
        stop, place = min(start + STRETCH, d), 0
        stretch = torch.zeros(-(-(stop - start) // 4096) * 4096, device=rows[0].device)
        for number, row in enumerate(rows):
            for part in slices(max(start - place, 0), min(stop - place, row.numel())):
                target = stretch[place + part.start - start : place + part.stop - start]
                target.copy_(row[part])
                if olds:
                    target -= olds[number][part].float()
            place += row.numel()
        yield stretch.view(-1, LANES)
