"""The scales of a model's parameters by name: their bytes, and those of a part of the model."""

from __future__ import annotations

import zlib
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

    All who take part in a run have the same ones.

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
        """A byte for each exponent, of each parameter's rows and then of its columns; compressed by
        zlib (RFC 1950)."""
        plain = b"".join(e.numpy().tobytes() for pair in self.exponents.values() for e in pair)
        return zlib.compress(plain, level=9)

    @staticmethod
    def read(data: bytes, shapes: Shapes) -> ModelScales:
        """The scales of parameters of these shapes.

        Raises:
            MessageError: they are not that.
        """
        count = exponents_of(shapes)
        plain = _decompressed(data, count)
        if len(plain) != count:
            raise MessageError(f"the scales are not {count} exponents, which this model has")
        numbers = np.frombuffer(plain, dtype=np.int8)
        if len(numbers) and int(np.abs(numbers.astype(np.int16)).max()) > MOST_EXPONENT:
            raise MessageError(f"the scales have an exponent beyond {MOST_EXPONENT}")
        exponents, start = {}, 0
        for name, shape in shapes.items():
            rows, columns = matrix(shape)
            pair = numbers[start : start + rows], numbers[start + rows : start + rows + columns]
            exponents[name] = (torch.tensor(pair[0]), torch.tensor(pair[1]))
            start += rows + columns
        return ModelScales(exponents)


def exponents_of(shapes: Shapes) -> int:
    """How many the scales of parameters of these shapes have."""
    return sum(sum(matrix(shape)) for shape in shapes.values())


def _decompressed(data: bytes, most: int) -> bytes:
    """What was compressed, but no more than a byte beyond ``most``; nothing if it is malformed."""
    try:
        return zlib.decompressobj().decompress(data, most + 1)
    except zlib.error:
        return b""
