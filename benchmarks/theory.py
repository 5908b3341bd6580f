"""The bounds of docs/theory.md beside what happens, on quadratics whose constants are known.

    python benchmarks/theory.py

Client i has f_i(w) = (w - c_i)' A (w - c_i) / 2. A has 256 eigenvalues, all 1 ("flat", effective
rank 256) or falling as 1 / k**2 ("steep", effective rank 1.6), in random axes; the c_i make clients
differ by zeta**2 = 1. Rounds are those of the theorem: some of 64 clients take T SGD steps whose
gradients have noise of variance sigma**2 = 1, changes go through `SignBasis`, the server takes its
step. The first table has the mean of the squared gradient over the rounds, with the longest steps
that the theorem allows, over the theorem's bound; the second the longest step gamma with which
clients without noise or differences still arrive, and that over 2 / (L (1 + kappa / n)), with
shared directions 2 / (L (1 + kappa)).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fullfed.sketch import SHARED, SignBasis

Vector = NDArray[np.float64]
D, CLIENTS, STEPS = 256, 64, 5
LOCAL = 0.2  # eta L T, the largest that the theorem allows
COHORTS = ((1, False), (8, False), (8, True))  # n, and whether directions are shared
SPECTRA = {"flat": np.ones(D), "steep": 1.0 / np.arange(1, D + 1) ** 2}


@dataclass(frozen=True)
class Federation:
    """Quadratics and how a round goes.

    Attributes:
        spectrum: the eigenvalues of A; L = 1 is the largest.
        coordinates, cohort: K and n.
        shared: whether a round's clients share directions.
        zeta, sigma: roots of how much clients differ and of the noise of a gradient.
        seed: of all that is random.
    """

    spectrum: Vector
    coordinates: int
    cohort: int
    shared: bool = False
    zeta: float = 1.0
    sigma: float = 1.0
    seed: int = 0

    @property
    def kappa(self) -> float:
        """Of the lemma."""
        rank = float(self.spectrum.sum())
        return min(math.ceil(D / self.coordinates) - 1, (rank + 1) / self.coordinates)

    @property
    def q(self) -> float:
        """Of the theorem."""
        return (1 + self.kappa) / self.cohort

    @property
    def longest(self) -> float:
        """The longest gamma of the theorem; L = 1."""
        return min(1 / (1 + self.kappa) if self.shared else 1.0, 1 / (16 * self.q))

    def squared_gradients(self, gamma: float, rounds: int) -> Iterator[float]:
        """Of f, before each round."""
        random = np.random.default_rng(self.seed)
        axes = np.linalg.qr(random.normal(size=(D, D)))[0]
        matrix = (axes * self.spectrum) @ axes.T
        away = random.normal(size=(CLIENTS, D))
        away -= away.mean(0)
        away *= self.zeta / math.sqrt((np.square(away @ matrix)).sum(1).mean())
        w = axes @ (np.ones(D) / math.sqrt(D))  # minima's mean is 0
        for round in range(rounds):
            gradient = matrix @ w
            yield float(gradient @ gradient)
            cohort = random.choice(CLIENTS, self.cohort, replace=False)
            changes = [self._visit(matrix, w, away[i], random) for i in cohort]
            scale = gamma / LOCAL  # the server step, gamma = s eta T
            w = w + scale * self._rebuilt(changes, round)

    def _visit(
        self, matrix: Vector, w: Vector, away: Vector, random: np.random.Generator
    ) -> Vector:
        here = w
        for _ in range(STEPS):
            noise = random.normal(size=D) * self.sigma / math.sqrt(D)
            here = here - LOCAL / STEPS * (matrix @ (here - away) + noise)
        return here - w

    def _rebuilt(self, changes: list[Vector], round: int) -> Vector:
        """The mean change as everybody gets it."""
        if self.shared:
            changes = [np.mean(changes, axis=0)]
        rebuilt = torch.zeros(D)
        for n, change in enumerate(changes):
            owner = SHARED if self.shared else n
            basis = SignBasis(self.seed, round, coordinates=self.coordinates, owner=owner)
            y = basis.project([torch.from_numpy(change).float()])
            basis.reconstruct_([rebuilt], y, scale=1 / len(changes))
        return rebuilt.double().numpy()

    def cells(self, spectrum: str) -> str:
        """Of a line of a table."""
        directions = "shared" if self.shared else "own"
        numbers = f"{self.coordinates} | {self.cohort} | {directions} | {self.kappa:.2f}"
        return f"| {spectrum} | {numbers}"

    def bound(self, gamma: float, rounds: int) -> float:
        """The theorem's right-hand side; L = 1."""
        start = float(self.spectrum.mean() / 2)
        zeta, sigma = self.zeta**2, self.sigma**2
        return (
            4 * start / (gamma * rounds)
            + 8 * gamma * self.q * zeta
            + 4 * gamma * self.q * sigma / STEPS
            + 10 * LOCAL**2 * zeta
            + 5 * LOCAL**2 * sigma / STEPS
        )


def arrives(federation: Federation, gamma: float) -> bool:
    """Whether 400 rounds lower the gradient."""
    values = []
    for value in federation.squared_gradients(gamma, 400):
        values.append(value)
        if value > 1e6 * values[0]:
            return False
    return values[-1] < values[0]


def longest_step(federation: Federation) -> float:
    """The longest gamma that arrives, to a twentieth."""
    low, high = federation.longest, 64 * federation.longest
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if arrives(federation, middle) else (low, middle)
    return low


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000)
    rounds = parser.parse_args().rounds
    print("| spectrum | K | n | directions | kappa | squared gradient | bound | share |")
    print("|---|---|---|---|---|---|---|---|")
    for name, spectrum in SPECTRA.items():
        for coordinates in (4, 32, 256):
            for cohort, shared in COHORTS:
                case = Federation(spectrum, coordinates, cohort, shared)
                mean = float(np.mean(list(case.squared_gradients(case.longest, rounds))))
                bound = case.bound(case.longest, rounds)
                print(f"{case.cells(name)} | {mean:.3f} | {bound:.2f} | {mean / bound:.2f} |")
    print("\n| spectrum | K | n | directions | kappa | longest step | share |")
    print("|---|---|---|---|---|---|---|")
    for name, spectrum in SPECTRA.items():
        for coordinates in (1, 4, 16, 64):
            for cohort, shared in COHORTS:
                case = Federation(spectrum, coordinates, cohort, shared, zeta=0, sigma=0)
                step = longest_step(case)
                noise = case.kappa if shared else case.kappa / cohort
                print(f"{case.cells(name)} | {step:.3f} | {step * (1 + noise) / 2:.2f} |")


if __name__ == "__main__":
    main()
