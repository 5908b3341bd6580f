"""The sign basis: K coordinates of a whole model in one pass over memory, whatever K is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch.backends import Rows, backend_for
from fullfed.sketch.checks import check_coordinates, check_finite, check_scale, factors
from fullfed.sketch.generator import SHARED, Purpose, Stream
from fullfed.sketch.layout import FOLD
from fullfed.sketch.pieces import Rounding, check_tensors, flat, rounding_stream, writable, zeros


@dataclass(frozen=True)
class SignBasis:
    """Every element belongs to one of K coordinates and carries one random sign.

    Element g of the model (counted over the list of tensors) stands in row g div K; each row
    is rotated by its own random amount, so that no coordinate collects one column of every
    matrix. With V the d x K matrix of signs, V'V = (d / K) I exactly when K divides d, and
    ``reconstruct_(zeros, project(delta))`` = V V' delta is unbiased with expected squared
    error (d / K - 1) ||delta||**2, so ||y||**2 is an unbiased estimate of ||delta||**2.

    Attributes:
        seed: the recipe's seed, 64-bit.
        round: 32-bit round number.
        owner: 32-bit client number, or SHARED.
        coordinates: K, from 1 to the number of elements.
    """

    seed: int
    round: int
    coordinates: int
    owner: int = SHARED

    def __post_init__(self) -> None:
        check_coordinates(self.coordinates)

    @property
    def rows(self) -> Rows:
        return Rows(
            self.coordinates,
            Stream(self.seed, Purpose.SIGNS, self.round, self.owner),
            Stream(self.seed, Purpose.ROTATION, self.round, self.owner),
        )

    def project(
        self,
        delta: Sequence[Tensor],
        *,
        before: Sequence[Tensor] | None = None,
        weights: Sequence[float] | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """The coordinates V' delta, float32, shape (K,), on the tensors' device.

        Args:
            delta: tensors of any shape in float32, bfloat16 or float16; or, with ``before``,
                the tensors after training.
            before: tensors of the same shapes; ``delta - before`` is projected, each
                difference rounded to float32 once.
            weights: one float32 per tensor that multiplies its elements first.
            backend: "reference" or "numba"; by default the device's own.

        Raises:
            UserError: fewer elements than coordinates, tensors that do not match, or a
                difference that is not finite.
        """
        elements = check_tensors(delta, before)
        self._check_fits(elements)
        kernels = backend_for(delta[0].device, backend)
        groups = -(-elements // (self.coordinates * FOLD))
        partials = zeros(groups, self.coordinates, delta[0].device)
        offset = 0
        for number, weight in enumerate(factors(weights, len(delta))):
            new = flat(delta[number])
            old = None if before is None else flat(before[number])
            if new.numel():
                kernels.add_projection(self.rows, new, old, weight, offset, partials)
            offset += new.numel()
        return check_finite(kernels.fold(partials), "the change to project")

    def reconstruct_(
        self,
        weights: Sequence[Tensor],
        coordinates: Tensor,
        *,
        scale: float = 1.0,
        inverse: Sequence[float] | None = None,
        rounding: Rounding = "nearest",
        backend: str | None = None,
    ) -> None:
        """Add scale * V y to the weights, in place.

        Per element w = fl(w + s * fl(f * y_k)), f = fl(scale * inverse of its tensor), both
        in float32; 16-bit weights are widened and rounded back.

        Args:
            weights: the model's tensors, in the order and shapes that were projected.
            coordinates: y, float32, shape (K,), on the weights' device.
            scale: rounded to float32 once.
            inverse: one float32 per tensor, for what was projected with ``weights``.
            rounding: "stochastic" rounds bfloat16 weights up or down at random, without bias and
                alike on every device, so that small changes are not lost.
            backend: as for ``project``.

        Raises:
            UserError: the wrong number of coordinates, or a value that is not finite.
                Nothing has been modified then.
        """
        self._check_fits(check_tensors(weights))
        check_coordinates(self.coordinates, coordinates, weights[0].device)
        step = check_scale(scale)
        kernels = backend_for(weights[0].device, backend)
        scales = [float(step * np.float32(f)) for f in factors(inverse, len(weights))]
        noise = rounding_stream(rounding, self.seed, self.round, self.owner)
        for number, offset, row in writable(weights, kernels, noise):
            kernels.add_reconstruction(self.rows, row, offset, coordinates, scales[number])

    def _check_fits(self, elements: int) -> None:
        if elements < self.coordinates:
            raise UserError(
                f"{self.coordinates} coordinates for a model of {elements} elements; "
                "ask for at most one coordinate per element."
            )
