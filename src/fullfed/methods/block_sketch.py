"""The sketch codec of a block: K coordinates of the change of one block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fullfed.federation.messages import Plan, Report, Update
from fullfed.methods.blocks import Shapes, block_of, check_block, named_block
from fullfed.methods.codecs import Change, Payload
from fullfed.methods.sketched import Sketched


@dataclass(frozen=True)
class BlockSketch:
    """``Sketched`` on the block that a round is about; all its clients have the same.

    Attributes:
        blocks: each block's parameters and their shapes.
        sketch: the codec of the block's change.
    """

    blocks: tuple[Shapes, ...]
    sketch: Sketched

    @property
    def cumulative(self) -> bool:
        return False

    def plan(self, round: int, last: Update | None) -> Payload:
        return self.sketch.plan(round, last)

    def encode(self, change: Change, plan: Plan) -> Payload:
        payload = self.sketch.encode(change, plan)
        return replace(payload, values={**payload.values, "block": block_of(plan)})

    def report_bytes(self, plan: Plan) -> int:
        return self.sketch.report_bytes(plan)

    def check(self, report: Report, plan: Plan) -> None:
        check_block(report, plan)
        self.sketch.check(report, plan)

    def merge(
        self, reports: Iterable[tuple[float, Report]], plan: Payload, last: Update | None
    ) -> Payload:
        return self.sketch.merge(reports, plan, last)  # the plan's values name the block

    def energy(self, merged: Payload) -> float | None:
        return self.sketch.energy(merged)

    def apply(self, parameters: Mapping[str, Tensor], update: Update) -> None:
        block = named_block(self.blocks, update)
        self.sketch.apply({name: parameters[name] for name in block}, update)
