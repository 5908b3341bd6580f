"""The dense codec: every number of the change is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fullfed.federation.messages import MessageError, Plan, Report, Update, number
from fullfed.methods.codecs import Change, Payload

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Dense:
    """Averages what clients send, as FedAvg does (McMahan et al. 2017, Algorithm 1).

    In float32 a report is the trained weights themselves, so that one client with a server
    step of 1 is reproduced exactly (adding a rounded difference would not be). In bfloat16
    it is the change since the round began, because the weights themselves would lose it.
    The update's value ``server_step`` is how far the model goes towards the clients' mean.

    Attributes:
        shapes: of the trained parameters, by name.
        dtype: "float32" or "bfloat16", both ways.
    """

    shapes: Mapping[str, torch.Size]
    dtype: Literal["float32", "bfloat16"]

    def plan(self, round: int, last: Update | None) -> Payload:
        return Payload()

    @property
    def cumulative(self) -> bool:
        return False

    def encode(self, change: Change, plan: Plan) -> Payload:
        if self.dtype == "float32":
            # Copies: the parameters themselves are restored before the report is encoded.
            return Payload(
                tensors={
                    n: p.detach().to(torch.float32, copy=True) for n, p in change.after.items()
                }
            )
        difference = {
            name: (p.detach().float() - change.before[name].float()).to(torch.bfloat16)
            for name, p in change.after.items()
        }
        return Payload(tensors=difference)

    def report_bytes(self, plan: Plan) -> int:
        return sum(shape.numel() for shape in self.shapes.values()) * DTYPES[self.dtype].itemsize

    def check(self, report: Report, plan: Plan) -> None:
        if report.tensors.keys() != self.shapes.keys():
            raise MessageError("the report does not hold exactly the trained parameters")
        for name, tensor in report.tensors.items():
            if tensor.shape != self.shapes[name] or tensor.dtype != DTYPES[self.dtype]:
                raise MessageError(
                    f"the report's {name!r} is {tuple(tensor.shape)} of {tensor.dtype}, "
                    f"not {tuple(self.shapes[name])} of {DTYPES[self.dtype]}"
                )

    def merge(
        self, reports: Iterable[tuple[float, Report]], plan: Payload, last: Update | None
    ) -> Payload:
        """A running mean in fp32: memory does not grow with the cohort, and one is exact."""
        total = 0.0
        mean: dict[str, Tensor] = {}
        for weight, report in reports:
            total += weight
            for name, tensor in report.tensors.items():
                if name in mean:
                    mean[name].lerp_(tensor.float(), weight / total)
                else:
                    mean[name] = tensor.to(torch.float32, copy=True)
        return Payload(
            tensors={name: tensor.to(DTYPES[self.dtype]) for name, tensor in mean.items()},
        )

    def energy(self, merged: Payload) -> float | None:
        return None

    def apply(self, parameters: Mapping[str, Tensor], update: Update) -> None:
        step = number(update, "server_step")
        for name, parameter in parameters.items():
            sent = update.tensors[name].to(parameter.device, torch.float32)
            if self.dtype == "bfloat16":
                parameter.copy_(parameter.float().add_(sent, alpha=step))
            elif step == 1.0:
                parameter.copy_(sent)
            else:
                parameter.copy_(parameter.float().lerp_(sent, step))
