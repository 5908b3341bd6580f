"""The sign basis: K coordinates of a whole model in one pass over memory, whatever K is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fullfed.errors import UserError
from fullfed.randomness import SHARED, Purpose, Stream
from fullfed.sketch.backends import Rows, backend_for
from fullfed.sketch.checks import check_coordinates, check_finite, check_scale, check_tensors
from fullfed.sketch.coded import Coded, decoded
from fullfed.sketch.layout import FOLD
from fullfed.sketch.pieces import Rounding, readable, rounding_noise, writable, zeros
from fullfed.sketch.weights import Weight, factors


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
        weights: Sequence[Weight] | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """The coordinates V' delta, float32, shape (K,), on the tensors' device.

        Args:
            delta: tensors of any shape in float32, bfloat16 or float16; or, with ``before``,
                the tensors after training.
            before: tensors of the same shapes; ``delta - before`` is projected, each
                difference rounded to float32 once.
            weights: what multiplies each tensor's elements first: a number; a float32 tensor
                that broadcasts to its shape; or, for a matrix, a pair of float32 vectors
                (r, c), shapes (rows,) and (columns,), for r_i c_j.
            backend: "reference", "numba" or "triton"; by default the device's own.

        Raises:
            UserError: fewer elements than coordinates, tensors or weights that do not match,
                or a difference that is not finite.
        """
        elements = check_tensors(delta, before)
        self._check_fits(elements)
        kernels = backend_for(delta[0].device, backend)
        groups = -(-elements // (self.coordinates * FOLD))
        partials = zeros(groups, self.coordinates, delta[0].device)
        rows = self.rows(elements)
        for pieces in readable(delta, before, factors(weights, delta)):
            kernels.add_projection(rows, pieces, partials)
        return check_finite(kernels.fold(partials), "the change to project")

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

        Per element w = fl(w + s * fl(f * y_k)), f = fl(scale * its inverse weight), both in
        float32; 16-bit weights are widened and rounded back.

        Args:
            weights: the model's tensors, in the order and shapes that were projected.
            coordinates: y, float32, shape (K,), on the weights' device; or what they were coded as,
                which on the CPU a large model never has decoded all at once.
            scale: rounded to float32 once.
            inverse: as ``weights`` of ``project``, for what was projected with those.
            rounding: "stochastic" rounds bfloat16 weights up or down at random, without bias and
                alike on every device, so that small changes are not lost.
            backend: as for ``project``.

        Raises:
            UserError: the wrong number of coordinates, or a value that is not finite.
                Nothing has been modified then.
        """
        elements = check_tensors(weights)
        self._check_fits(elements)
        check_coordinates(self.coordinates, coordinates, weights[0].device)
        scales, device = factors(inverse, weights, check_scale(scale)), weights[0].device
        values = coordinates if device.type == "cpu" else decoded(coordinates, device)
        kernels = backend_for(device, backend)
        rows = self.rows(elements)
        noise = rounding_noise(rounding, rows.signs)
        for pieces in writable(weights, scales, kernels, noise):
            kernels.add_reconstruction(rows, pieces, values)

    def _check_fits(self, elements: int) -> None:
        if elements < self.coordinates:
            raise UserError(
                f"{self.coordinates} coordinates for a model of {elements} elements; "
                "ask for at most one coordinate per element."
            )
