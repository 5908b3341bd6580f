"""Majority vote: of each coordinate the sign that most clients say, whatever else they say.

Clients that rotate alike (``Codec.voting``) send one bit of each rotated coordinate, so that a
client has one vote on each, and an update is as short as a report.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fullfed.federation.messages import Report
from fullfed.methods.aggregation import Aggregation, Sum
from fullfed.methods.codecs.codec import Codec, Contribution

_ENERGY = 2 / math.pi  # of normal numbers, as a share of what their unbiased one-bit code has


@dataclass(frozen=True)
class MajorityVote(Aggregation):
    """signSGD with majority vote (Bernstein et al. 2019, arXiv 1810.05291, Algorithm 1) on
    coordinates. Reports weigh alike.

    All numbers of the result have one size a block. It is made of the lower median of the reports'
    scales, which no minority moves, and of how far votes agree; see ``Votes``.
    """

    @property
    def votes(self) -> bool:
        return True

    def coding(self, codec: Codec) -> Codec:
        return codec.voting()

    def begin(self) -> Sum:
        return Votes()


class Votes:
    """Counts votes.

    With V_j the sum of n clients' signs of number j, and m_j = |V_j| / n, the result is
    s (sum m^2 / sum m) sign(V_j), s the median scale: the one-bit code of the mean of the votes,
    whose scale is the energy over the sum of sizes, as a client's own is. So its product with the
    mean of the clients' coordinates is that mean's energy, as far as they are normal. Ties go to
    either side by turns.

    Two clients' signs are equal by rho = 2/pi arcsin(c), c their cosine (Sheppard 1899), and m^2
    has the mean rho + (1 - rho) / n. So the votes tell the energy of the mean of coordinates, and
    what the result has beyond it is noise.
    """

    def __init__(self) -> None:
        self._votes: dict[str, Tensor] = {}
        self._sizes: dict[str, list[Tensor]] = {}

    def add(self, report: Report, contribution: Contribution) -> None:
        for name, numbers in contribution.tensors.items():
            signs = torch.where(numbers > 0, 1, -1).to(torch.int32)
            self._votes[name] = self._votes[name] + signs if name in self._votes else signs
            self._sizes.setdefault(name, []).append(numbers.abs())

    def result(self) -> Contribution:
        tensors, noise = {}, 0.0
        for name, votes in self._votes.items():
            sizes = self._sizes[name]
            size = torch.stack(sizes).sort(dim=0).values[(len(sizes) - 1) // 2]
            tensors[name], energy = _decided(votes, size, len(sizes))
            noise += float(tensors[name].double().square().sum()) - energy
        return Contribution(tensors, noise)


def _decided(votes: Tensor, size: Tensor, clients: int) -> tuple[Tensor, float]:
    """What a vote came to, and the energy of the mean of the clients' coordinates.

    Args:
        votes: int32, the sum of the clients' signs.
        size: of a client's numbers, of the same shape.
    """
    margins = votes.double().abs() / clients
    squares = float(margins.square().mean())
    scale = squares / max(float(margins.mean()), 1 / len(margins))  # no division by zero
    turns = 1 - 2 * (torch.arange(len(votes)) % 2)
    signs = torch.where(votes == 0, turns, votes.sign())
    alike = (clients * squares - 1) / (clients - 1) if clients > 1 else 1.0
    cosine = math.sin(math.pi / 2 * max(alike, 0.0))
    mean = cosine + (1 - cosine) / clients
    energy = _ENERGY * mean * float(size.double().square().sum())
    return (signs * size.double() * scale).float(), energy
