"""Random bases: K coordinates stand for a whole model, or for each of its blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.randomness import SHARED, Purpose, Stream
from fullfed.sketch.backends import DirectionRows, Rows, backend_for
from fullfed.sketch.checks import check_coordinates, check_finite, check_scale, check_tensors
from fullfed.sketch.codes import Coded, decoded
from fullfed.sketch.entries import FOLD, LANES, second_moment, truncated
from fullfed.sketch.scales import Scales
from fullfed.sketch.segments import load, readable, writable, zeros
from fullfed.sketch.shards import LocalTensors

_STRETCH = 4096 * FOLD  # elements of a dense basis whose products make one partial sum


@dataclass(frozen=True)
class SignBasis:
    """Every element of the model belongs to one of K coordinates and carries one random sign.

    Element g (counted over the list of tensors) stands in row g div K and is of coordinate
    (g + the row's random rotation) mod K, so that no coordinate collects one column of every
    matrix. With V the d x K matrix of signs, ``reconstruct_(zeros, project(delta))`` is V V' delta,
    an unbiased estimate of delta. Its expected squared error is (d / K - 1) ||delta||**2 if K
    divides d; then also V'V = (d / K) I. In general it is the sum over rows, of n elements each,
    of n / K (||delta||**2 - ||delta in the row||**2).

    Attributes:
        seed: the recipe's seed, 64-bit.
        round: 32-bit round number.
        coordinates: K, from 1 to the number of elements.
        owner: 32-bit client number, or SHARED.
    """

    seed: int
    round: int
    coordinates: int
    owner: int = SHARED

    def __post_init__(self) -> None:
        check_coordinates(self.coordinates)

    def rows(self, elements: int) -> Rows:
        """How a model of so many elements stands in rows."""
        count = -(-elements // self.coordinates)
        return Rows(
            self.coordinates,
            Stream(self.seed, Purpose.SIGNS, self.round, self.owner),
            Stream(self.seed, Purpose.ROTATION, self.round, self.owner),
            depth=min(128, max(4, 1 << (count - 1).bit_length())),
        )

    def project(
        self,
        delta: Sequence[Tensor],
        *,
        before: Sequence[Tensor] | None = None,
        scales: Scales | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """The coordinates V' delta, float32, shape (K,), on the tensors' device.

        Args:
            delta: tensors of any shape in float32, bfloat16 or float16; or, with ``before``,
                the tensors after training. Those that torch's ``fully_shard`` made are projected
                where they lie, in all their processes at once; the coordinates are the same in
                each, and those of whole tensors but for the order of their sums.
            before: tensors of the same shapes; ``delta - before`` is projected, each
                difference rounded to float32 once.
            scales: each difference is multiplied by its inverse factor first.
            backend: "reference", "numba" or "triton"; by default the device's own.

        Raises:
            UserError: fewer elements than coordinates, tensors or scales that do not match, or a
                difference that is not finite.
        """
        elements = check_tensors(delta, before, scales)
        self._check_fits(elements)
        kernels, rows = backend_for(delta[0].device, backend), self.rows(elements)
        groups = -(-elements // (self.coordinates * FOLD))
        partials = zeros(groups, self.coordinates, delta[0].device)
        here, start = (
            LocalTensors.of(delta),
            None if before is None else LocalTensors.of(before).tensors,
        )
        for segments in readable(here, start, here.scales(scales), scaled=kernels.SCALED):
            kernels.add_projection(rows, segments, partials)
        return check_finite(here.added(kernels.fold(partials)), "the change to project")

    def reconstruct_(
        self,
        weights: Sequence[Tensor],
        coordinates: Tensor | Coded,
        *,
        scale: float = 1.0,
        scales: Scales | None = None,
        part: tuple[int, int] | None = None,
        backend: str | None = None,
    ) -> None:
        """Add scale * V y to the weights, in place.

        Each weight w becomes fl(w + s * fl(scale * y_k)), s its sign and k its coordinate, in
        float32; 16-bit weights are widened and rounded back. With scales it becomes
        fl(w + fl(s * fl(scale * y_k) * factor)), which is as unbiased: the error of what is added
        has the shape of the factors.

        Args:
            weights: the model's tensors, in the order and shapes that were projected. Sharded ones
                get the same numbers, bit for bit, as whole ones.
            coordinates: y, float32, shape (K,), on the weights' device; or coded.
            scale: rounded to float32 once.
            scales: those that were projected with.
            part: where the weights are only some that follow each other: the number of their first
                element in the model, and how many elements the model has.
            backend: as for ``project``.

        Raises:
            UserError: the wrong number of coordinates, scales that do not match, or a value that
                is not finite. Nothing has been modified then.
        """
        here, device = check_tensors(weights, scales=scales), weights[0].device
        start, elements = (0, here) if part is None else part
        self._check_fits(elements)
        check_coordinates(self.coordinates, coordinates, device)
        factor, kernels = check_scale(scale), backend_for(device, backend)
        values = decoded(coordinates, device, backend)
        local = LocalTensors.of(weights, start)
        for segments in writable(local, factor, local.scales(scales), scaled=kernels.SCALED):
            kernels.add_reconstruction(self.rows(elements), segments, values)

    def _check_fits(self, elements: int) -> None:
        if elements < self.coordinates:
            raise UserError(
                f"{self.coordinates} coordinates for a model of {elements} elements; "
                "ask for at most one coordinate per element."
            )


@dataclass(frozen=True)
class NormalBasis:
    """K_l random vectors for block l of d_l elements, as in Ferret (arXiv 2409.06277).

    Their entries are N(0, 1) truncated to (-1 / sqrt(d_l), 1 / sqrt(d_l)). ``project`` gives
    y_l = V_l' delta_l / (rho_l K_l), rho_l the second moment of an entry, and ``reconstruct_`` adds
    V_l y_l, an unbiased estimate of delta_l (eqs. 6 to 8), with expected squared error
    ((d_l - 0.2) / K_l) ||delta_l||**2. Costs O(sum of K_l d_l).

    Attributes:
        seed: the recipe's seed, 64-bit.
        round: 32-bit round number.
        blocks: consecutive runs of tensor numbers, together 0, 1, ..., covering every tensor.
        coordinates: K_l for each block, from 1 to its number of elements.
        owner: 32-bit client number, or SHARED.
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
        """How many tensors all blocks have."""
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
        kernels, coordinates = backend_for(delta[0].device, backend), []
        for number, (block, k) in enumerate(zip(self.blocks, self.coordinates, strict=True)):
            new = [delta[n] for n in block]
            old = None if before is None else [before[n] for n in block]
            d = _elements(new)
            partials = zeros(-(-d // _STRETCH), k, delta[0].device)
            for stretch, elements in enumerate(_stretches(new, old)):
                directions = self._directions(number, d, stretch * _STRETCH)
                kernels.add_products(truncated(d), directions, elements, partials[stretch])
            unit = float(np.float32(1.0 / (second_moment(d) * k)))
            coordinates.append(kernels.fold(partials) * unit)
        return check_finite(torch.cat(coordinates), "the change to project")

    def reconstruct_(
        self,
        weights: Sequence[Tensor],
        coordinates: Tensor | Coded,
        *,
        scale: float = 1.0,
        backend: str | None = None,
    ) -> None:
        """Add scale * V y to the weights, in place.

        Each weight w becomes fl(w + fl(scale * u)), u the sum over k in order of fl(y_k v_k).
        Arguments and errors as for ``SignBasis.reconstruct_``.
        """
        check_tensors(weights)
        self._check_fits(weights)
        device = weights[0].device
        check_coordinates(sum(self.coordinates), coordinates, device)
        factor, kernels = check_scale(scale), backend_for(device, backend)
        values = torch.split(decoded(coordinates, device, backend), list(self.coordinates))
        for number, block in enumerate(self.blocks):
            tensors = [weights[n] for n in block]
            d = _elements(tensors)
            for segments in writable(LocalTensors.of(tensors), factor):
                kernels.add_combination(
                    truncated(d), self._directions(number, d), values[number], segments
                )

    def _directions(self, block: int, d: int, start: int = 0) -> list[DirectionRows]:
        """The K_l directions of a block, from its element ``start`` (a multiple of _STRETCH) on."""
        parts = truncated(d).parts
        rows = parts * -(-d // (parts * LANES))
        stream = Stream(self.seed, Purpose.TRUNCATED_NORMAL, self.round, self.owner, block)
        return [
            DirectionRows(stream, k * rows + start // LANES) for k in range(self.coordinates[block])
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
    """_STRETCH elements of the block at a time as float32 (rows, LANES), padded with zeros."""
    d = _elements(tensors)
    for start in range(0, d, _STRETCH):
        stop, place = min(start + _STRETCH, d), 0
        stretch = zeros(-(-(stop - start) // 4096), 4096, tensors[0].device).view(-1)
        for n, new in enumerate(tensors):
            low, high = max(start - place, 0), min(stop - place, new.numel())
            if low < high:
                target = stretch[place + low - start : place + high - start]
                load(target, new, None if before is None else before[n], low)
            place += new.numel()
        yield stretch.view(-1, LANES)


def allocate(total: int, weights: Sequence[float], sizes: Sequence[int]) -> tuple[int, ...]:
    """Split ``total`` coordinates over blocks in proportion to ``weights``.

    Every block gets at least 1 and at most its size; what a full block cannot take goes to
    the others. Shares are rounded by largest remainder, ties to the earlier block, in exact
    arithmetic, so every machine obtains the same split. For a budget of coordinates the
    squared error of a dense basis is least with weights sqrt(d_l) * ||delta_l||.

    Raises:
        UserError: a total below the number of blocks or above the sum of sizes, or weights
            that are not finite and non-negative.
    """
    if len(weights) != len(sizes):
        raise UserError(f"{len(weights)} weights for {len(sizes)} blocks.")
    if not len(sizes) <= total <= sum(sizes):
        raise UserError(
            f"{total} coordinates for {len(sizes)} blocks of {sum(sizes)} elements in all; "
            "ask for at least one per block and at most one per element."
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise UserError("allocation weights must be finite and not negative.")
    exact = [Fraction(weight) for weight in weights]
    if not any(exact):
        exact = [Fraction(1)] * len(sizes)
    return _round(total, _shares(total, exact, sizes), sizes)


def _shares(total: int, weights: list[Fraction], sizes: Sequence[int]) -> list[Fraction]:
    """Proportional shares, each from 1 to its block's size, adding up to total exactly."""
    shares = [Fraction(0)] * len(sizes)
    open_blocks, left = set(range(len(sizes))), Fraction(total)
    while open_blocks:
        weight = sum((weights[n] for n in open_blocks), Fraction(0))
        for n in open_blocks:
            shares[n] = left * weights[n] / weight if weight else left / len(open_blocks)
        low = [n for n in open_blocks if shares[n] < 1]
        high = [n for n in open_blocks if shares[n] > sizes[n]]
        short = sum((1 - shares[n] for n in low), Fraction(0))
        excess = sum((shares[n] - sizes[n] for n in high), Fraction(0))
        clamped = low if short > excess else high if excess > short else low + high
        if not clamped:
            break
        for n in clamped:
            shares[n] = Fraction(1) if shares[n] < 1 else Fraction(sizes[n])
            left -= shares[n]
            open_blocks.remove(n)
    return shares


def _round(total: int, shares: list[Fraction], sizes: Sequence[int]) -> tuple[int, ...]:
    """Whole numbers next to the shares, adding up to total: by largest remainder."""
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda n: (counts[n] - shares[n], n))
    for n in by_remainder[: total - sum(counts)]:
        counts[n] += 1
    return tuple(counts)
