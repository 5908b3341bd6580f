"""The stacking codec: clients' low-rank factors are kept apart, so that their products add up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fullfed.federation.messages import Plan, Report, Update, number
from fullfed.methods.adapters import A, Adapters, B, W, adapted, initial_a, merge
from fullfed.methods.codecs import Change, Payload
from fullfed.methods.dense import Dense


class Folded(Adapters):
    """Both factors train; what an update changes are the matrices under them, and A.

    B is 0 outside of visits, so there is no adapter to save.
    """

    def replicated(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Of every target its matrix W, as (out, in), and its factor A."""
        parameters = dict(model.named_parameters())
        replicated: dict[str, Tensor] = {}
        for target in adapted(parameters):
            matrix = parameters[target + W].detach()
            transposed = isinstance(model.get_submodule(target).base_layer, Conv1D)
            replicated[target + W] = matrix.T if transposed else matrix
            replicated[target + A] = parameters[target + A]
        return replicated

    def detach(self, model: PreTrainedModel, folder: Path) -> None:
        merge(model)


@dataclass(frozen=True)
class Stacked:
    """Sends both factors; the update holds every client's, and everybody multiplies.

    An update's A has the shape (n r, in) and its B the shape (out, n r) for n clients. A client's
    part of A is weighted by its share. Downloads grow with the cohort.

    Attributes:
        shapes: of the trained parameters, by name.
        seed: the recipe's; the next A follows from it.
        scaling: alpha / r.
    """

    shapes: Mapping[str, torch.Size]
    seed: int
    scaling: float

    @property
    def cumulative(self) -> bool:
        return False

    @property
    def _reports(self) -> Dense:
        return Dense(self.shapes, "float32")

    def plan(self, round: int, last: Update | None) -> Payload:
        return Payload()

    def encode(self, change: Change, plan: Plan) -> Payload:
        return self._reports.encode(change, plan)

    def report_bytes(self, plan: Plan) -> int:
        return self._reports.report_bytes(plan)

    def check(self, report: Report, plan: Plan) -> None:
        self._reports.check(report, plan)

    def merge(
        self, reports: Iterable[tuple[float, Report]], plan: Payload, last: Update | None
    ) -> Payload:
        received = list(reports)  # the update holds them all
        total = sum(weight for weight, _ in received)
        tensors = {}
        for name in self.shapes:
            parts = [report.tensors[name] for _, report in received]
            if name.endswith(A):
                shares = [weight / total for weight, _ in received]
                tensors[name] = torch.cat([s * a for s, a in zip(shares, parts, strict=True)])
            else:
                tensors[name] = torch.cat(parts, dim=1)
        return Payload(tensors=tensors)

    def energy(self, merged: Payload) -> float | None:
        return None

    def apply(self, parameters: Mapping[str, Tensor], update: Update) -> None:
        scale = self.scaling * number(update, "server_step")
        for order, target in enumerate(adapted(parameters)):
            matrix, a = parameters[target + W], parameters[target + A]
            sent_a = update.tensors[target + A].to(matrix.device)
            sent_b = update.tensors[target + B].to(matrix.device)
            matrix.copy_(matrix.float() + product(sent_b * scale, sent_a))
            a.copy_(initial_a(self.seed, update.round + 1, order, a.shape))


def product(b: Tensor, a: Tensor) -> Tensor:
    """B A in float32, the same on every device: each product and each sum is rounded by itself,
    in the order of the rank. A matrix multiplication would choose its own order."""
    total = torch.zeros(b.shape[0], a.shape[1], device=b.device)
    term = torch.empty_like(total)
    for column, row in zip(b.unbind(1), a.unbind(0), strict=True):
        torch.mul(column[:, None], row, out=term)
        total.add_(term)
    return total
