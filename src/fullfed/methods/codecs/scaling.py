"""The scales of a model's parameters by name: their bytes, and those of a part of the model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fullfed.errors import MessageError
from fullfed.methods.codecs.codec import Shapes
from fullfed.sketch import Scales
from fullfed.sketch.scales import matrix

# Of a row's exponent or a column's: factors are between 2**-16 and 2**16, whoever made them.
MOST_EXPONENT = 64


@dataclass(frozen=True, eq=False)
class ModelScales:
    """A factor for each element of what a run's visits train (``fullfed.sketch.Scales``).

    All who take part in a run have the same ones. They are a byte for each row and each column.

    Attributes:
        exponents: of each parameter's rows and of its columns, by name, in the model's order;
            int8, from -MOST_EXPONENT to MOST_EXPONENT.
    """

    exponents: Mapping[str, tuple[Tensor, Tensor]]

    def of(self, names: Iterable[str]) -> Scales:
        """Those of some parameters, in this order."""
        pairs = [self.exponents[name] for name in names]
        return Scales(tuple(rows for rows, _ in pairs), tuple(columns for _, columns in pairs))

    @cached_property
    def data(self) -> bytes:
        """The exponents of each parameter's rows, then of its columns, as they are in a file."""
        return b"".join(e.numpy().tobytes() for pair in self.exponents.values() for e in pair)

    @cached_property
    def sha256(self) -> str:
        """Of ``data``, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    @staticmethod
    def read(data: bytes, shapes: Shapes) -> ModelScales:
        """The scales of parameters of these shapes.

        Raises:
            MessageError: they are not that.
        """
        if len(data) != scales_bytes(shapes):
            raise MessageError(
                f"the scales have {len(data)} bytes; those of this model have "
                f"{scales_bytes(shapes)}"
            )
        numbers = np.frombuffer(data, dtype=np.int8)
        if len(numbers) and int(np.abs(numbers.astype(np.int16)).max()) > MOST_EXPONENT:
            raise MessageError(f"the scales have an exponent beyond {MOST_EXPONENT}")
        exponents, start = {}, 0
        for name, shape in shapes.items():
            rows, columns = matrix(shape)
            pair = numbers[start : start + rows], numbers[start + rows : start + rows + columns]
            exponents[name] = (torch.tensor(pair[0]), torch.tensor(pair[1]))
            start += rows + columns
        return ModelScales(exponents)


def scales_bytes(shapes: Shapes) -> int:
    """Of the scales of parameters of these shapes."""
    return sum(sum(matrix(shape)) for shape in shapes.values())
