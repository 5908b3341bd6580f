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
from fullfed.methods.codecs.codec import SCALES, SIGNS, Codec, Contribution
from fullfed.sketch import energy_of

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
        self._votes = torch.zeros(0, dtype=torch.int32)
        self._scales: list[Tensor] = []

    def add(self, report: Report, contribution: Contribution) -> None:
        signs = contribution.tensors[SIGNS].int()
        self._votes = self._votes + signs if self._scales else signs
        self._scales.append(contribution.tensors[SCALES])

    def result(self) -> Contribution:
        clients, count = len(self._scales), len(self._votes)
        margins = self._votes.abs().double() / clients
        squares, sizes = float(margins.square().mean()), float(margins.mean())
        usual = torch.stack(self._scales).double().median(dim=0).values  # the lower one
        scales = (usual * (squares / sizes if sizes else 0.0)).float()
        alike = (clients * squares - 1) / (clients - 1) if clients > 1 else 1.0
        cosine = math.sin(math.pi / 2 * max(alike, 0.0))
        mean = cosine + (1 - cosine) / clients
        energy = _ENERGY * mean * energy_of(usual, count)
        turns = 1 - 2 * (torch.arange(count) % 2)
        signs = torch.where(self._votes == 0, turns, self._votes.sign()).to(torch.int8)
        return Contribution({SIGNS: signs, SCALES: scales}, energy_of(scales, count) - energy)
