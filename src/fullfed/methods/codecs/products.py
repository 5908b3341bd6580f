"""How clients' changes lie to each other, as far as their reports tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fullfed.methods.codecs.codec import Contribution
from fullfed.sketch import SignBasis

_AT_ONCE = 1 << 25  # numbers of all reports that are looked at at once: 128 or 256 MiB
_HELD = 1 << 26  # coordinates of all reports together that are decoded for it: 256 MiB
_UNSURE = 0.1  # a cosine by chance with which reports are not compared


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
        flat = [c.tensors[name].flatten() for c in contributions]
        for parts in zip(*(torch.split(t, max(_AT_ONCE // count, 1)) for t in flat), strict=True):
            rows = torch.stack([part.double() for part in parts])
            inner += (rows @ rows.T).cpu()
        numbers += first.numel()
    return Products(inner, 1 / math.sqrt(numbers))


def products_of_sketches(
    bases: Sequence[SignBasis], coordinates: Iterable[Tensor], elements: int, fidelity: float
) -> Products | None:
    """Those of changes of which each has its own random directions.

    The product of two reconstructed changes is an unbiased estimate of that of the changes, with a
    standard deviation of about their lengths times sqrt(d) / K: each of d elements has an error of
    1 / K of the square of the length. A length is that of the coordinates. None where K is too
    small for that to say anything, and where there are more coordinates than are held at once.

    Args:
        bases: of each report, all with the same K.
        coordinates: float32, shape (K,), of each; not looked at for None.
        elements: d, of what was projected.
        fidelity: how many exact coordinates each is worth.
    """
    count, size = len(bases), bases[0].coordinates
    chance = math.sqrt(elements) / (size * fidelity)
    if chance > _UNSURE or count * size > _HELD:
        return None
    known = list(coordinates)
    inner = torch.zeros(count, count, dtype=torch.float64)
    room = torch.empty(count, min(elements, max(_AT_ONCE // count, 1)))
    for start in range(0, elements, room.shape[1]):
        rows = room[:, : elements - start].zero_()
        for basis, y, row in zip(bases, known, rows, strict=True):
            basis.reconstruct_([row], y, part=(start, elements))
        inner += (rows @ rows.T).double()
    inner.diagonal().copy_(torch.stack([y.double().square().sum() for y in known]))
    return Products(inner, chance)
