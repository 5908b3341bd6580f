"""The dense codec: every number of a change is sent, in 32, 16 or 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from fullfed.errors import MessageError
from fullfed.federation.messages import Plan, Report, Update, number
from fullfed.federation.replica import norm
from fullfed.federation.tensors import Computed, put_away
from fullfed.methods.codecs.codec import (
    Change,
    Codec,
    Contribution,
    Encoded,
    Shapes,
    Summable,
    check_tensors,
)
from fullfed.training.quantised import quantise

_SCALE = "/scale"  # after a parameter's name: the name of its scales
_LEVELS = 127
_SCALE_TYPE = torch.bfloat16  # float32's range
_LARGEST = torch.finfo(torch.float32).max / 256  # of a scale: no code times it is infinite


@dataclass(frozen=True)
class Dense(Codec):
    """Sends what FedAvg does (McMahan et al. 2017, Algorithm 1).

    In float32 a report is the trained weights themselves, so that one client with a server
    step of 1 is reproduced exactly (adding a rounded difference would not be). Otherwise it is
    their change since the round began, because the weights themselves would lose it: rounded to
    bfloat16; or in int8 to whole multiples of a scale for each row of a matrix, the row's largest
    entry / 127 in bfloat16. The mean of the clients' is rounded once more.

    With error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847) a client
    keeps what rounding took from its change, and adds it when it trains the same parameters again.

    Attributes:
        precision: of what is sent, both ways: the trained weights in "float32", else their change.
        error_feedback: whether clients keep what rounding took from their change and add it to
            their next (of the same block).
    """

    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    error_feedback: bool = False

    @property
    def stateful(self) -> bool:
        return self.error_feedback and not self._exact

    @property
    def sends_weights(self) -> bool:
        return self._exact

    @property
    def _exact(self) -> bool:
        return self.precision == "float32"

    def as_changes(self) -> Codec:
        return DenseChanges() if self._exact else self

    def for_sums(self, bits: int, shapes: Shapes) -> Codec:
        return DenseChanges(error_feedback=self.error_feedback)

    def encode(self, change: Change, plan: Plan, shapes: Shapes) -> Encoded:
        state: dict[str, Tensor] = {}
        tensors = put_away(self._encoded(change, state), self.report_bytes(plan, shapes))
        return Encoded(tensors=tensors, state=state)

    def _encoded(self, change: Change, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a report, which put what rounding takes into ``state``."""
        for name, parameter in change.after.items():
            # A copy: the parameters themselves are restored before the report becomes bytes.
            after = parameter.detach().to(torch.float32, copy=True)
            if self._exact:
                yield name, after
                continue
            wanted = after.sub_(change.before[name].float())
            if name in change.state:
                wanted += change.state[name].to(wanted.device)
            sent = self._rounded(name, wanted)
            yield from sent.items()
            if self.stateful:
                state[name] = wanted - self._values(name, sent)

    def report_bytes(self, plan: Plan, shapes: Shapes) -> int:
        return sum(shape.numel() * dtype.itemsize for shape, dtype in self._kinds(shapes).values())

    def check(self, report: Report, plan: Plan, shapes: Shapes) -> None:
        check_tensors(report, self._kinds(shapes))
        for name, tensor in report.tensors.items():
            if name.endswith(_SCALE) and not bool((tensor.float().abs() <= _LARGEST).all()):
                raise MessageError(f"the report's {name!r} holds a scale that is too large")

    def check_update(self, update: Update, shapes: Shapes) -> None:
        check_tensors(update, self._kinds(shapes))

    def decode(self, report: Report, plan: Plan, shapes: Shapes) -> Contribution:
        return Contribution(Computed(shapes, lambda name: self._values(name, report.tensors)))

    def norm(
        self, report: Report, plan: Plan, shapes: Shapes, parameters: Mapping[str, Tensor]
    ) -> float:
        if not self._exact:
            return super().norm(report, plan, shapes, parameters)
        return norm(
            report.tensors[name].to(start.device).double().sub_(start.detach())
            for name, start in parameters.items()
        )

    def encode_update(
        self, aggregate: Contribution, plan: Plan, shapes: Shapes, last: Update | None
    ) -> Encoded:
        each = aggregate.tensors.items()
        sent = chain.from_iterable(self._rounded(name, value).items() for name, value in each)
        return Encoded(tensors=put_away(sent, self.report_bytes(plan, shapes)))

    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
        step = number(update, "server_step")
        for name, parameter in parameters.items():
            sent = self._values(name, update.tensors).to(parameter.device)
            if not self._exact:
                parameter.copy_(parameter.float() + sent * step)
            elif step == 1.0:
                parameter.copy_(sent)
            else:
                start = parameter.float()
                parameter.copy_(start + (sent - start) * step)

    def _kinds(self, shapes: Shapes) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """The tensors of a report."""
        if self.precision != "int8":
            dtype = getattr(torch, self.precision)
            return {name: (shape, dtype) for name, shape in shapes.items()}
        kinds = {}
        for name, shape in shapes.items():
            kinds[name] = shape, torch.int8
            kinds[name + _SCALE] = torch.Size([_rows(shape)]), _SCALE_TYPE
        return kinds

    def _rounded(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """A float32 tensor as it is sent; in 8 bits with a scale for each row."""
        if self._exact:
            return {name: value}
        if self.precision == "bfloat16":
            return {name: value.to(torch.bfloat16)}
        codes, scale = quantise(value.reshape(_rows(value.shape), -1), _LEVELS, _SCALE_TYPE)
        return {name: codes.view(value.shape), name + _SCALE: scale.squeeze(1)}

    def _values(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """What was sent, in float32."""
        value = tensors[name].float()
        if self.precision != "int8":
            return value
        scale = tensors[name + _SCALE].float()
        return value.reshape(len(scale), -1).mul_(scale.unsqueeze(1)).view(value.shape)


@dataclass(frozen=True)
class DenseChanges(Dense):
    """Sends the change of every number in float32: where only what reports add up to is known, and
    where they begin from different versions."""

    @property
    def _exact(self) -> bool:
        return False

    def _rounded(self, name: str, value: Tensor) -> dict[str, Tensor]:
        return {name: value.float()}

    def summable(self, shapes: Shapes) -> Summable:
        """Changes of single weights are of very different sizes."""
        return Summable(shapes, first=1.0, tail=1024.0)


def _rows(shape: torch.Size) -> int:
    """How many scales a tensor has: one for each row of a matrix."""
    return shape[0] if len(shape) > 1 else 1
