"""FLoRA's codec: an update holds every client's LoRA factors side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Report, Update, number
from fullfed.methods.codecs.codec import Encoded, Shapes, Weighted, check_tensors
from fullfed.methods.codecs.dense import Dense
from fullfed.methods.scopes import A, B, W, adapted, initial_a


@dataclass(frozen=True, kw_only=True)
class Stacked(Dense):
    """Sends both factors; the update holds every client's, and everybody multiplies (Wang et al.
    2024, FLoRA, arXiv 2409.05976).

    An update's A has the shape (n r, in) and its B the shape (out, n r) for n clients. A client's
    part of A is multiplied by its weight. Downloads grow with the cohort.

    Attributes:
        seed: the recipe's; the next A follows from it.
        scaling: alpha / r.
    """

    seed: int
    scaling: float

    @property
    def comparable(self) -> bool:
        return False

    @property
    def stacks(self) -> bool:
        return True

    def norm(
        self, report: Report, plan: Plan, shapes: Shapes, parameters: Mapping[str, Tensor]
    ) -> float:
        """Of alpha / r * B A: its square is the sum of the numbers of (B'B) * (A A')."""
        squares = []
        for target in adapted(shapes):
            a, b = report.tensors[target + A].double(), report.tensors[target + B].double()
            squares.append(float(((b.T @ b) * (a @ a.T)).sum()))
        return self.scaling * math.sqrt(max(math.fsum(squares), 0.0))

    def check_update(self, update: Update, shapes: Shapes) -> None:
        joined = max((len(t) for name, t in update.tensors.items() if name.endswith(A)), default=0)
        kinds = {}
        for name, shape in shapes.items():
            rank = shape[0] if name.endswith(A) else shape[1]
            if joined == 0 or joined % rank:
                raise MessageError("the update does not hold whole factors")
            due = (joined, shape[1]) if name.endswith(A) else (shape[0], joined)
            kinds[name] = torch.Size(due), torch.float32
        check_tensors(update, kinds)

    def stack(self, reports: Weighted, plan: Plan, shapes: Shapes, last: Update | None) -> Encoded:
        tensors = {}
        for name in shapes:
            if name.endswith(A):
                tensors[name] = torch.cat([w * own.tensors[name] for w, own in reports])
            else:
                tensors[name] = torch.cat([own.tensors[name] for _, own in reports], dim=1)
        return Encoded(tensors=tensors)

    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
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
