"""The dense codec of a block: its weights, or its change in 16 or 8 bits with error feedback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fullfed.federation.messages import MessageError, Plan, Report, Update
from fullfed.methods.blocks import Shapes, block_of, check_block, named_block
from fullfed.methods.codecs import Change, Payload

Precision = Literal["float32", "bfloat16", "int8"]
_SCALE = "/scale"  # after a parameter's name: the name of its scales
_LEVELS = 127
_SCALE_TYPE = torch.bfloat16  # float32's range; codes are of the rounded scale, so nothing is lost
_LARGEST = torch.finfo(torch.float32).max / 256  # of a scale: no code times it is infinite


@dataclass(frozen=True)
class BlockDense:
    """Sends one block; an update holds each block of its round, in the same bytes.

    In "float32" a block is its trained weights themselves, so that a cycle of one client is
    plain training to the last bit. Otherwise it is their change since the round began: rounded to
    "bfloat16", or to whole multiples of a scale for each row, its largest entry / 127 in bfloat16,
    in "int8".
    A block that several clients trained is the mean of theirs, rounded once more.

    With error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847) a client
    keeps what rounding took from its change, and adds it when it trains the block again.

    Attributes:
        blocks: each block's parameters and their shapes.
        precision: of what is sent, both ways.
        feedback: whether clients keep their rounding errors.
    """

    blocks: tuple[Shapes, ...]
    precision: Precision
    feedback: bool

    @property
    def cumulative(self) -> bool:
        return False

    def plan(self, round: int, last: Update | None) -> Payload:
        return Payload()

    def encode(self, change: Change, plan: Plan) -> Payload:
        tensors: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}
        for name, before in change.before.items():
            after = change.after[name].detach().float()
            if self.precision == "float32":
                tensors[name] = after.clone()  # the parameters themselves are restored
                continue
            wanted = after - before.float()
            if name in change.kept:
                wanted += change.kept[name].to(wanted.device)
            sent = self._packed(name, wanted)
            tensors |= sent
            if self.feedback:
                kept[name] = wanted - self._unpacked(name, sent)
        return Payload({"block": block_of(plan)}, tensors, kept)

    def report_bytes(self, plan: Plan) -> int:
        kinds = self._kinds(named_block(self.blocks, plan)).values()
        return sum(shape.numel() * dtype.itemsize for shape, dtype in kinds)

    def check(self, report: Report, plan: Plan) -> None:
        check_block(report, plan)
        expected = self._kinds(named_block(self.blocks, plan))
        if report.tensors.keys() != expected.keys():
            raise MessageError("the report does not hold exactly the block's parameters")
        for name, tensor in report.tensors.items():
            shape, dtype = expected[name]
            if tensor.shape != shape or tensor.dtype != dtype:
                raise MessageError(
                    f"the report's {name!r} is {tuple(tensor.shape)} of {tensor.dtype}, "
                    f"not {tuple(shape)} of {dtype}"
                )
            if name.endswith(_SCALE) and not bool((tensor.float().abs() <= _LARGEST).all()):
                raise MessageError(f"the report's {name!r} holds a scale that is too large")

    def merge(
        self, reports: Iterable[tuple[float, Report]], plan: Payload, last: Update | None
    ) -> Payload:
        """A running mean of each block; what one client alone trained passes as it came."""
        alone: dict[int, tuple[float, Report]] = {}
        totals: dict[int, float] = {}
        means: dict[int, dict[str, Tensor]] = {}
        for weight, report in reports:
            block = block_of(report)
            if block not in totals:
                totals[block] = weight
                alone[block] = weight, report
                continue
            if block in alone:
                means[block] = self._values(alone.pop(block)[1].tensors, block)
            totals[block] += weight
            for name, value in self._values(report.tensors, block).items():
                means[block][name].lerp_(value, weight / totals[block])
        tensors: dict[str, Tensor] = {}
        for block in sorted(totals):
            if block in alone:
                tensors |= alone[block][1].tensors
            else:
                for name, mean in means[block].items():
                    tensors |= self._packed(name, mean)
        return Payload({"blocks": [*sorted(totals)]}, tensors)

    def energy(self, merged: Payload) -> float | None:
        return None

    def apply(self, parameters: Mapping[str, Tensor], update: Update) -> None:
        for name in update.tensors:
            if name.endswith(_SCALE):
                continue
            parameter = parameters[name]
            sent = self._unpacked(name, update.tensors).to(parameter.device)
            if self.precision == "float32":
                parameter.copy_(sent)
            else:
                parameter.copy_(parameter.float().add_(sent))

    def _values(self, tensors: Mapping[str, Tensor], block: int) -> dict[str, Tensor]:
        """What a report says, in float32, in tensors of its own."""
        return {name: self._unpacked(name, tensors).clone() for name in self.blocks[block]}

    def _packed(self, name: str, value: Tensor) -> dict[str, Tensor]:
        if self.precision == "float32":
            return {name: value}
        if self.precision == "bfloat16":
            return {name: value.to(torch.bfloat16)}
        return packed(name, value)

    def _unpacked(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        value = tensors[name].float()
        if self.precision != "int8":
            return value
        scale = tensors[name + _SCALE].float()
        return value.reshape(len(scale), -1).mul_(scale.unsqueeze(1)).view(value.shape)

    def _kinds(self, block: Shapes) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """The tensors that a report about a block holds."""
        if self.precision != "int8":
            dtype = getattr(torch, self.precision)
            return {name: (shape, dtype) for name, shape in block.items()}
        kinds = {}
        for name, shape in block.items():
            kinds[name] = shape, torch.int8
            kinds[name + _SCALE] = torch.Size([_rows(shape)]), _SCALE_TYPE
        return kinds


def packed(name: str, value: Tensor) -> dict[str, Tensor]:
    """A float32 tensor in 8 bits: codes under its name, and a scale for each row."""
    rows = value.reshape(_rows(value.shape), -1)
    scale = (rows.abs().amax(dim=1) / _LEVELS).to(_SCALE_TYPE)
    scale = torch.where(scale > 0, scale, 1)
    codes = (rows / scale.float().unsqueeze(1)).round_().clamp_(-_LEVELS, _LEVELS)
    return {name: codes.to(torch.int8).view(value.shape), name + _SCALE: scale}


def _rows(shape: torch.Size) -> int:
    """How many scales a tensor has: one for each row of a matrix."""
    return shape[0] if len(shape) > 1 else 1
