"""The sketch codec: a change becomes K coordinates on shared random directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from fullfed.federation.messages import Plan, Report, Update, Value, number
from fullfed.methods.codecs import Change, Payload
from fullfed.methods.coding import Coding, Exact
from fullfed.sketch import SHARED, Coded, decoded


class Basis(Protocol):
    """What SignBasis and NormalBasis both offer."""

    def project(
        self, delta: Sequence[Tensor], *, before: Sequence[Tensor] | None = None
    ) -> Tensor: ...

    def reconstruct_(
        self, weights: Sequence[Tensor], coordinates: Tensor | Coded, *, scale: float = 1.0
    ) -> None: ...


class BasisFamily(Protocol):
    """The bases of a run, one for each round and owner."""

    @property
    def coordinates(self) -> int:
        """K of every basis."""

    def plan(self, round: int, last: Update | None) -> dict[str, Value]:
        """What of the round's bases is not fixed by the recipe; in every plan and update."""

    def basis(self, round: int, owner: int, values: Mapping[str, Value]) -> Basis:
        """The basis of one owner in one round, given what ``plan`` said."""

    def energy(self, coordinates: Tensor, values: Mapping[str, Value]) -> float:
        """An unbiased estimate of ||delta||**2 from a delta's coordinates."""

    def remember(
        self, values: Mapping[str, Value], mean: Callable[[], Tensor], last: Update | None
    ) -> dict[str, Value]:
        """What an update carries for later plans; ``mean()`` is the mean of all coordinates."""


@dataclass(frozen=True)
class Sketched:
    """Sends K coordinates of the change; everyone reconstructs.

    With shared directions coordinates add up, so the update is their mean: K numbers, coded as
    those of a client, however many clients. With directions of each client's own the noise
    averages out over the cohort, and the update holds every client's K numbers.

    Attributes:
        family: which directions.
        seeds: "shared" or "client".
        coding: how coordinates travel.
    """

    family: BasisFamily
    seeds: Literal["shared", "client"]
    coding: Coding = field(default_factory=Exact)

    @property
    def worth(self) -> float:
        """How many exact coordinates a client's are worth; a mean of shared ones is coded again."""
        fidelity = self.coding.fidelity
        return self.family.coordinates * (fidelity**2 if self.seeds == "shared" else fidelity)

    def plan(self, round: int, last: Update | None) -> Payload:
        return Payload(values=self.family.plan(round, last))

    @property
    def cumulative(self) -> bool:
        return False

    def encode(self, change: Change, plan: Plan) -> Payload:
        owner = SHARED if self.seeds == "shared" else plan.client
        basis = self.family.basis(plan.round, owner, plan.values)
        coordinates = basis.project(
            [p.detach() for p in change.after.values()],
            before=[change.before[name] for name in change.after],
        )
        return Payload(tensors=self.coding.encode(coordinates, plan.round, plan.client))

    def report_bytes(self, plan: Plan) -> int:
        return self.coding.nbytes(self.family.coordinates)

    def check(self, report: Report, plan: Plan) -> None:
        self.coding.check(report.tensors, self.family.coordinates)

    def merge(
        self, reports: Iterable[tuple[float, Report]], plan: Payload, last: Update | None
    ) -> Payload:
        received = list(reports)  # K numbers a client
        total = math.fsum(weight for weight, _ in received)
        shares = [weight / total for weight, _ in received]

        def mean() -> Tensor:
            return self._mean(received, shares)[0]

        values = {**plan.values, **self.family.remember(plan.values, mean, last)}
        if self.seeds == "shared":
            pooled, noise = self._mean(received, shares)
            values["energy"] = max(self.family.energy(pooled, values) - noise, 0.0)
            round = received[0][1].round
            return Payload(values, self.coding.encode(pooled.float(), round, SHARED))
        stacked = {
            name: torch.stack([report.tensors[name] for _, report in received])
            for name in received[0][1].tensors
        }
        clients = torch.tensor([report.client for _, report in received])
        return Payload(values, {**stacked, "clients": clients, "weights": torch.tensor(shares)})

    def _mean(
        self, received: Sequence[tuple[float, Report]], shares: Sequence[float]
    ) -> tuple[Tensor, float]:
        """The mean of all coordinates, float64, and what coding them added to its energy."""
        count, fidelity = self.family.coordinates, self.coding.fidelity
        mean, noise, room = torch.zeros(count, dtype=torch.float64), 0.0, self.coding.room(count)
        for share, (_, sent) in zip(shares, received, strict=True):
            coordinates = self.coding.received(sent.tensors, count, sent.round, sent.client, room)
            own = decoded(coordinates).double()
            mean += share * own
            noise += share**2 * (1 - fidelity) * float(own @ own)
        return mean, noise

    def energy(self, merged: Payload) -> float | None:
        """With shared directions the noise is that of the mean, whose energy y tells."""
        if self.seeds == "client":
            return None
        return float(merged.values["energy"])  # type: ignore[arg-type]

    def apply(self, parameters: Mapping[str, Tensor], update: Update) -> None:
        weights = [p.detach() for p in parameters.values()]
        step = number(update, "server_step")
        for owner, share, coordinates in self._sent(update):
            basis = self.family.basis(update.round, owner, update.values)
            if isinstance(coordinates, Tensor):
                coordinates = coordinates.to(weights[0].device)
            basis.reconstruct_(weights, coordinates, scale=step * share)

    def _sent(self, update: Update) -> Iterator[tuple[int, float, Tensor | Coded]]:
        """Whose directions, with what share, and the coordinates on them, until the next are."""
        count, tensors = self.family.coordinates, dict(update.tensors)
        room = self.coding.room(count)
        if self.seeds == "shared":
            yield SHARED, 1.0, self.coding.received(tensors, count, update.round, SHARED, room)
            return
        clients, shares = tensors.pop("clients").tolist(), tensors.pop("weights").tolist()
        for row, (client, share) in enumerate(zip(clients, shares, strict=True)):
            own = {name: stacked[row] for name, stacked in tensors.items()}
            yield client, share, self.coding.received(own, count, update.round, client, room)
