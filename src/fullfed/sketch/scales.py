"""Scales: a positive factor for each element of a model, by row and column of its tensor.

A change that differs in size from row to row and column to column is divided by its size before
it is projected, and multiplied by it again after: what is reconstructed has the noise where the
change is large. The factors are few bits, and the same on every machine
(docs/shared-randomness.md, section 10).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fullfed.errors import UserError
from fullfed.sketch.backends import Factors

SHORT = 64  # rows of fewer elements are not scaled in place
LONG = 1 << 17  # nor are those of more
STEPS = 8  # exponents to a factor of 2

# The float32 nearest to 2**(k / 8), k = 0, ..., 7.
_ROOTS = [
    "0x1.000000p+0",
    "0x1.172b84p+0",
    "0x1.306fe0p+0",
    "0x1.4bfdaep+0",
    "0x1.6a09e6p+0",
    "0x1.8ace54p+0",
    "0x1.ae89fap+0",
    "0x1.d5818ep+0",
]
# T[-128], ..., T[127]: roots of 2 times powers of 2, which is exact.
_TABLE = np.array(
    [math.ldexp(float.fromhex(_ROOTS[k % STEPS]), k // STEPS) for k in range(-128, 128)],
    dtype=np.float32,
)


@dataclass(frozen=True, eq=False)
class Scales:
    """A factor for each element of a list of tensors, of about 2**((row + column) / 8).

    Element (i, j) of a tensor, j counted over all its dimensions but the first, has the factor
    fl(T[rows[i]] * T[columns[j]]) and the inverse factor fl(T[-rows[i]] * T[-columns[j]]), T[k]
    the float32 nearest to 2**(k / 8). Their product is 1 within a few units in the last place:
    nothing is divided.

    Attributes:
        rows: for each tensor, in order, the exponents of its rows, int8 from -127, shape
            (shape[0],), on the CPU; one of a tensor without dimensions.
        columns: those of its columns, shape (product of the other dimensions,). A one-dimensional
            tensor has one column, whose exponent should be 0.

    Raises:
        UserError: exponents that are not such tensors.

    Examples:
        >>> import torch
        >>> exponents = torch.tensor([0, 8], dtype=torch.int8)
        >>> scales = fullfed.sketch.Scales((exponents,), (exponents,))  # of a matrix, 2 x 2
        >>> weights = [torch.zeros(2, 2)]
        >>> stream = fullfed.sketch.Stream(seed=0, purpose=4)
        >>> fullfed.sketch.perturb_(weights, stream, 1.0, scales=scales)
        >>> weights[0].abs().tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """

    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.columns):
            raise UserError(
                f"scales have rows of {len(self.rows)} tensors but columns of {len(self.columns)}."
            )
        for number, pair in enumerate(zip(self.rows, self.columns, strict=True)):
            for exponents in pair:
                _check_exponents(number, exponents)

    def __getitem__(self, tensors: slice) -> Scales:
        """Those of some of the tensors, as of a model that is perturbed tensor by tensor."""
        return Scales(self.rows[tensors], self.columns[tensors])

    def check(self, tensors: Sequence[Tensor]) -> None:
        """UserError if they are not scales of tensors of these shapes."""
        if len(tensors) != len(self.rows):
            raise UserError(f"scales of {len(self.rows)} tensors for {len(tensors)} tensors.")
        for number, tensor in enumerate(tensors):
            expected, found = matrix(tensor.shape), self.shape(number)
            if found != expected:
                raise UserError(
                    f"scales of tensor {number} have {found[0]} rows and {found[1]} columns; "
                    f"its shape {tuple(tensor.shape)} takes {expected[0]} and {expected[1]}."
                )

    def shape(self, number: int) -> tuple[int, int]:
        """Rows and columns of a tensor."""
        return len(self.rows[number]), len(self.columns[number])

    def fit(self, number: int) -> bool:
        """Whether the powers of a tensor's rows and columns take little memory.

        That is not so of a tensor with long columns and short rows, which would be slow as well.
        """
        rows, columns = self.shape(number)
        return SHORT <= columns <= LONG or (columns == 1 and rows <= LONG)

    def energy(self, tensors: Sequence[Tensor], before: Sequence[Tensor]) -> float:
        """The squared norm of what changed, each difference times its inverse factor."""
        total = 0.0
        for number, (after, start) in enumerate(zip(tensors, before, strict=True)):
            change = (after.detach().float() - start.float()).reshape(self.shape(number))
            rows, columns = (
                powers(exponents[number], change.device, inverse=True).square()
                for exponents in (self.rows, self.columns)
            )
            total += float(rows @ (change.square_() @ columns))
        return total

    def vectors(self, number: int, device: torch.device, *, inverse: bool) -> Factors:
        """The factors of a tensor, or the inverse ones; of a single column as of a single row."""
        rows, columns = (
            powers(exponents[number], device, inverse=inverse)
            for exponents in (self.rows, self.columns)
        )
        return Factors(columns, rows) if len(columns) == 1 else Factors(rows, columns)

    def factors(
        self, number: int, box: tuple[int | slice, ...], device: torch.device, *, inverse: bool
    ) -> Tensor:
        """The factors, or inverse factors, of a row and some columns, or of some whole rows.

        Args:
            number: of the tensor.
            box: (row, slice of columns) or (slice of rows,).
            inverse: whether inverse factors.
        """
        row, column = (*box, slice(None))[:2]
        rows = powers(self.rows[number][row], device, inverse=inverse)
        return rows[..., None] * powers(self.columns[number][column], device, inverse=inverse)


def powers(exponents: Tensor, device: torch.device, *, inverse: bool) -> Tensor:
    """T[k], or T[-k], of each exponent k, float32, on the device."""
    places = exponents.numpy().astype(np.int64)  # NumPy, unlike torch, wakes no threads
    numbers = np.asarray(_TABLE[128 - places if inverse else 128 + places])
    return torch.from_numpy(numbers).to(device)


def matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor of this shape; a vector has one column."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def _check_exponents(number: int, exponents: Tensor) -> None:
    if exponents.dtype != torch.int8 or exponents.dim() != 1 or exponents.device.type != "cpu":
        raise UserError(
            f"scales of tensor {number} are {exponents.dtype} of shape {tuple(exponents.shape)} "
            f"on {exponents.device}; expected a row of int8 on the CPU."
        )
    if exponents.numel() and int(exponents.min()) == -128:
        raise UserError(f"scales of tensor {number} have the exponent -128; the least is -127.")
