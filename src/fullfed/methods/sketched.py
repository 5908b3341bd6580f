"""The sketch codec: a change becomes K coordinates on shared random directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fullfed.federation.messages import MessageError, Plan, Report, Update, Value, number
from fullfed.methods.codecs import Change, Payload
from fullfed.sketch import SHARED


class Basis(Protocol):
    """What SignBasis and NormalBasis both offer."""

    def project(
        self, delta: Sequence[Tensor], *, before: Sequence[Tensor] | None = None
    ) -> Tensor: ...

    def reconstruct_(
        self, weights: Sequence[Tensor], coordinates: Tensor, *, scale: float = 1.0
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
        self, values: Mapping[str, Value], mean: Tensor, last: Update | None
    ) -> dict[str, Value]:
        """What an update carries for later plans; ``mean`` is the mean of all coordinates."""


@dataclass(frozen=True)
class Sketched:
    """Sends K float32 coordinates of the change; everyone reconstructs.

    With shared directions coordinates add up, so the update is their mean: K numbers, however
    many clients. With directions of each client's own the noise averages out over the cohort,
    and the update holds every client's K numbers.

    Attributes:
        family: which directions.
        seeds: "shared" or "client".
    """

    family: BasisFamily
    seeds: Literal["shared", "client"]

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
        return Payload(tensors={"coordinates": coordinates})

    def report_bytes(self, plan: Plan) -> int:
        return 4 * self.family.coordinates

    def check(self, report: Report, plan: Plan) -> None:
        sent = report.tensors.get("coordinates")
        shape = (self.family.coordinates,)
        if len(report.tensors) != 1 or sent is None:
            raise MessageError("the report does not hold coordinates and nothing else")
        if sent.shape != shape or sent.dtype != torch.float32:
            raise MessageError(
                f"the report's coordinates are {tuple(sent.shape)} of {sent.dtype}, "
                f"not {shape} of torch.float32"
            )

    def merge(
        self, reports: Iterable[tuple[float, Report]], plan: Payload, last: Update | None
    ) -> Payload:
        received = list(reports)  # K numbers a client
        weights = torch.tensor([weight for weight, _ in received], dtype=torch.float64)
        weights /= weights.sum()
        stacked = torch.stack([report.tensors["coordinates"] for _, report in received])
        mean = torch.zeros(self.family.coordinates, dtype=torch.float64)
        for weight, row in zip(weights.tolist(), stacked, strict=True):
            mean += weight * row
        values = {**plan.values, **self.family.remember(plan.values, mean, last)}
        if self.seeds == "shared":
            return Payload(values, {"coordinates": mean.float()})
        clients = torch.tensor([report.client for _, report in received])
        return Payload(
            values, {"coordinates": stacked, "clients": clients, "weights": weights.float()}
        )

    def energy(self, merged: Payload) -> float | None:
        """With shared directions the noise is that of the mean, whose energy y tells."""
        if self.seeds == "client":
            return None
        return self.family.energy(merged.tensors["coordinates"], merged.values)

    def apply(self, parameters: Mapping[str, Tensor], update: Update) -> None:
        weights = [p.detach() for p in parameters.values()]
        coordinates = update.tensors["coordinates"].to(weights[0].device)
        step = number(update, "server_step")
        if self.seeds == "shared":
            basis = self.family.basis(update.round, SHARED, update.values)
            basis.reconstruct_(weights, coordinates, scale=step)
            return
        owners = update.tensors["clients"].tolist()
        shares = update.tensors["weights"].tolist()
        for owner, share, own in zip(owners, shares, coordinates, strict=True):
            basis = self.family.basis(update.round, owner, update.values)
            basis.reconstruct_(weights, own, scale=step * share)
