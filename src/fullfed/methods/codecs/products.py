"""How clients' changes lie to each other, as far as their reports tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fullfed.methods.codecs.codec import Contribution
from fullfed.sketch import SignBasis

_AT_ONCE = 1 << 25  # numbers of all reports that are reconstructed at once: 128 MiB


@dataclass(frozen=True)
class Products:
    """The inner products of changes, or estimates of them.

    Attributes:
        inner: float64, shape (n, n), of n changes. Squared lengths are the diagonal.
        chance: the standard deviation of the cosine, so measured, of changes at right angles.
    """

    inner: Tensor
    chance: float


def products_of(contributions: Sequence[Contribution]) -> Products:
    """Those of decoded changes, whose numbers mean the same for all clients: n^2 times as many
    products as there are numbers."""
    count = len(contributions)
    inner = torch.zeros(count, count, dtype=torch.float64)
    numbers = 0
    for name, first in contributions[0].tensors.items():
        rows = torch.stack([c.tensors[name].double().flatten() for c in contributions])
        inner += (rows @ rows.T).cpu()
        numbers += first.numel()
    return Products(inner, 1 / math.sqrt(numbers))


def products_of_sketches(
    bases: Sequence[SignBasis], coordinates: Sequence[Tensor], elements: int, fidelity: float
) -> Products:
    """Those of changes of which each has its own random directions.

    The product of two reconstructed changes is an unbiased estimate of that of the changes, with a
    standard deviation of about their lengths times sqrt(d) / K: each of d elements has an error of
    1 / K of the square of the length. A length is that of the coordinates.

    Args:
        bases: of each report.
        coordinates: float32, shape (K,), of each.
        elements: d, of what was projected.
        fidelity: how many exact coordinates each is worth.
    """
    count = len(coordinates)
    inner = torch.zeros(count, count, dtype=torch.float64)
    room = torch.empty(count, min(elements, max(_AT_ONCE // count, 1)))
    for start in range(0, elements, room.shape[1]):
        rows = room[:, : elements - start].zero_()
        for basis, y, row in zip(bases, coordinates, rows, strict=True):
            basis.reconstruct_([row], y, part=(start, elements))
        inner += (rows @ rows.T).double()
    inner.diagonal().copy_(torch.stack([y.double().square().sum() for y in coordinates]))
    return Products(inner, chance(bases[0].coordinates, elements, fidelity))


def chance(coordinates: int, elements: int, fidelity: float) -> float:
    """The standard deviation of the cosine of two changes at right angles, by their coordinates on
    each one's own directions."""
    return math.sqrt(elements) / (coordinates * fidelity)
